// Reads PTX as nvcc writes it.
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "ptx.h"

namespace ptx {

namespace {

int bytes_of(const std::string& type) {
  if (type == "pred") return 1;
  const int bits = std::atoi(type.c_str() + 1);
  return bits / 8;
}

struct Token {
  std::string text;
  uint32_t line;
};

}  // namespace

class Parser {
 public:
  Parser(Program* program, std::string path, std::string text)
      : program_(program), path_(std::move(path)), text_(std::move(text)) {
    tokenize();
  }

  void parse() {
    while (!ends()) {
      const std::string& word = peek();
      if (word == ".version" || word == ".address_size") {
        skip(2);
      } else if (word == ".target") {
        skip(1);
        target_ = std::atoi(take().c_str() + 3);  // sm_90
        while (!ends() && peek() == ",") skip(2);
      } else if (word == ".extern" || word == ".visible" || word == ".weak") {
        skip(1);
      } else if (word == ".shared" || word == ".global") {
        variable(names_);
      } else if (word == ".entry") {
        kernel();
      } else {
        fail("unknown: " + word);
      }
    }
  }

 private:
  enum class Kind { reg, constant, shared, parameter };
  struct Name {
    Kind kind;
    uint64_t value;  // a slot, an address, an index, an offset
  };
  using Names = std::map<std::string, Name>;

  [[noreturn]] void fail(const std::string& what) const {
    const uint32_t line = at_ < tokens_.size() ? tokens_[at_].line : 0;
    std::fprintf(stderr, "ptx: %s:%u: %s\n", path_.c_str(), line, what.c_str());
    std::exit(2);
  }

  // ---- tokens: names with their dots, numbers, and single characters

  static bool in_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%' || c == '.';
  }
  void tokenize() {
    uint32_t line = 1;
    for (size_t i = 0; i < text_.size();) {
      const char c = text_[i];
      if (c == '\n') line++;
      if (std::isspace(static_cast<unsigned char>(c)) != 0) {
        i++;
      } else if (c == '/' && i + 1 < text_.size() && text_[i + 1] == '/') {
        while (i < text_.size() && text_[i] != '\n') i++;
      } else if (c == '"') {
        const size_t end = text_.find('"', i + 1);
        if (end == std::string::npos) fail("a text without an end");
        tokens_.push_back({text_.substr(i, end + 1 - i), line});
        i = end + 1;
      } else {
        size_t end = i + 1;
        if (in_word(c) || (c == '-' && end < text_.size() && std::isdigit(static_cast<unsigned char>(text_[end])) != 0)) {
          while (end < text_.size() && (in_word(text_[end]) || text_.compare(end, 2, "::") == 0)) end += text_[end] == ':' ? 2u : 1u;
        }
        tokens_.push_back({text_.substr(i, end - i), line});
        i = end;
      }
    }
  }
  bool ends() const { return at_ >= tokens_.size(); }
  const std::string& peek() const {
    if (ends()) fail("the file ends too soon");
    return tokens_[at_].text;
  }
  std::string take() {
    std::string word = peek();
    at_++;
    return word;
  }
  void skip(size_t count) { at_ += count; }
  void expect(const char* word) {
    if (peek() != word) fail(std::string(word) + " was expected, not " + peek());
    at_++;
  }

  // ---- declarations

  // .shared .align 4 .b8 name[64];
  void variable(Names& names) {
    const std::string space = take();
    if (peek() == ".align") skip(2);
    const size_t element = static_cast<size_t>(bytes_of(take().substr(1)));
    const std::string name = take();
    size_t count = 1;
    if (peek() == "[") {
      skip(1);
      count = peek() == "]" ? 0 : std::strtoull(take().c_str(), nullptr, 10);
      expect("]");
    }
    if (peek() != ";") fail("a variable with a value");
    skip(1);
    if (space == ".shared") {
      program_->shared_.push_back({name, element * count});
      shared_.push_back(&program_->shared_.back());
      names[name] = {Kind::shared, shared_.size() - 1};
    } else {
      program_->globals_.emplace_back(element * count);
      names[name] = {Kind::constant, reinterpret_cast<uint64_t>(program_->globals_.back().data())};
    }
  }

  // .param .align 8 .b8 name[24], or .param .u64 .ptr .global .align 16 name
  void parameter(Names& names) {
    expect(".param");
    size_t align = 0;
    if (peek() == ".align") {
      skip(1);
      align = std::strtoull(take().c_str(), nullptr, 10);
    }
    const size_t element = static_cast<size_t>(bytes_of(take().substr(1)));
    if (peek() == ".ptr") {  // what it points at
      skip(1);
      if (peek() != ".align") skip(1);
      skip(2);
    }
    const std::string name = take();
    size_t count = 1;
    if (!ends() && peek() == "[") {
      skip(1);
      count = std::strtoull(take().c_str(), nullptr, 10);
      expect("]");
    }
    if (align == 0) align = element;
    size_t& end = kernel_.parameter_bytes;
    end = (end + align - 1) / align * align;
    kernel_.parameters.push_back({end, element * count});
    names[name] = {Kind::parameter, end};
    end += element * count;
  }

  // .reg .f32 %f<236>; or .reg .b16 l, h;
  void registers(Names& names) {
    skip(2);
    do {
      std::string name = take();
      if (peek() == "<") {
        skip(1);
        const int count = std::atoi(take().c_str());
        expect(">");
        for (int i = 0; i < count; i++) names[name + std::to_string(i)] = {Kind::reg, new_slot(rubbish)};
      } else {
        names[name] = {Kind::reg, new_slot(rubbish)};
      }
    } while (take() == ",");
  }

  static constexpr uint64_t rubbish = 0xf5a7c3e1b96d8b4full;
  uint64_t new_slot(uint64_t value) {
    kernel_.slots.push_back(value);
    return kernel_.slots.size() - 1;
  }
  uint32_t constant(uint64_t value) {
    const auto [found, is_new] = constants_.try_emplace(value, 0);
    if (is_new) found->second = static_cast<uint32_t>(new_slot(value));
    return found->second;
  }

  // ---- a kernel

  void kernel() {
    skip(1);
    kernel_ = {};
    constants_.clear();
    named_.clear();
    labels_.clear();
    branches_.clear();
    kernel_.name = take();
    new_slot(0);  // no operand's: the number 0 is where there is none
    kernel_.target = target_;
    const size_t shared_before = shared_.size();
    scopes_.assign(1, names_);
    if (peek() == "(") {
      skip(1);
      while (peek() != ")") {
        parameter(scopes_.back());
        if (peek() == ",") skip(1);
      }
      skip(1);
    }
    while (peek() != "{") skip(1);  // .maxntid and the like
    statements();
    for (const auto& [instruction, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail("a branch to " + label + ", which is not in " + kernel_.name);
      kernel_.code[instruction].target = found->second;
    }
    kernel_.shared = shared_;
    shared_.resize(shared_before);
    const std::string name = kernel_.name;
    program_->kernels_[name] = std::move(kernel_);
  }

  void statements() {
    do {
      const std::string& word = peek();
      if (word == "{") {
        skip(1);
        scopes_.emplace_back();
      } else if (word == "}") {
        skip(1);
        scopes_.pop_back();
      } else if (word == ".reg") {
        registers(scopes_.back());
      } else if (word == ".shared") {
        variable(scopes_.back());
      } else if (word == ".pragma") {
        while (take() != ";") {
        }
      } else if (at_ + 1 < tokens_.size() && tokens_[at_ + 1].text == ":") {
        labels_[word] = static_cast<uint32_t>(kernel_.code.size());
        skip(2);
      } else {
        instruction();
      }
    } while (scopes_.size() > 1);
    // A label may be the last thing: something must stand there.
    Instruction end;
    if (!decode({"ret"}, &end)) fail("no ret");
    kernel_.code.push_back(end);
  }

  void instruction() {
    Instruction one;
    one.line = tokens_[at_].line;
    if (peek() == "@") {
      skip(1);
      one.guarded = true;
      if (peek() == "!") {
        skip(1);
        one.unless = true;
      }
      one.guard = value();
    }
    std::vector<std::string> opcode;
    const std::string word = take();
    for (size_t begin = 0; begin <= word.size();) {
      size_t end = word.find('.', begin);
      if (end == std::string::npos) end = word.size();
      opcode.push_back(word.substr(begin, end - begin));
      begin = end + 1;
    }
    if (!decode(opcode, &one)) fail("an instruction that is not known: " + word);
    one.work = work_of(opcode);
    if (opcode[0] == "bra") {
      branches_.push_back({kernel_.code.size(), take()});
    } else if (opcode[0] == "ld") {
      targets(one);
      expect(",");
      address(one);
    } else if (opcode[0] == "st") {
      address(one);
      expect(",");
      sources(one, 1);
    } else if (opcode[0] == "atom") {
      targets(one);
      expect(",");
      address(one);
      expect(",");
      sources(one, 1);
    } else if (peek() != ";") {
      if (opcode[0] == "bar") {  // has no result
        sources(one, 0);
      } else {
        targets(one);
        if (peek() == "|") {
          skip(1);
          one.to[1] = value();
        }
        if (peek() == ",") {
          skip(1);
          sources(one, 0);
        }
      }
    }
    expect(";");
    kernel_.code.push_back(one);
  }

  // A register, or {a, b}.
  void targets(Instruction& one) {
    if (peek() != "{") {
      one.to[0] = value();
      return;
    }
    for (int i = 0; take() != "}"; i++) {
      if (i == 4) fail("a vector of over 4");
      one.to[i] = value();
    }
  }
  // The rest of the operands, vectors taken apart, from slot `at` on.
  void sources(Instruction& one, int at) {
    while (true) {
      if (at == 5) fail("too many operands");
      if (peek() == "{" || peek() == "}") {
        skip(1);
        if (peek() == ",") skip(1);
        if (peek() == ";") return;
        continue;
      }
      one.from[at++] = value();
      if (peek() == "}") skip(1);
      if (peek() == ";") return;
      expect(",");
    }
  }
  // [base+offset]: the base in from[0].
  void address(Instruction& one) {
    expect("[");
    one.from[0] = value();
    if (peek() == "+") {
      skip(1);
      one.offset = std::strtoll(take().c_str(), nullptr, 0);
    }
    expect("]");
  }

  // The slot of a register, number or name.
  uint32_t value() {
    std::string word = take();
    if (word == "-") word += take();
    if (word == "_") return constant_scratch();
    const char first = word[0];
    if (std::isdigit(static_cast<unsigned char>(first)) != 0 || first == '-') {
      if (word.compare(0, 2, "0f") == 0 || word.compare(0, 2, "0d") == 0)
        return constant(std::strtoull(word.c_str() + 2, nullptr, 16));
      if (word.back() == 'U') word.pop_back();
      return constant(first == '-' ? static_cast<uint64_t>(std::strtoll(word.c_str(), nullptr, 0))
                                   : std::strtoull(word.c_str(), nullptr, 0));
    }
    for (size_t i = scopes_.size(); i-- > 0;) {
      const auto found = scopes_[i].find(word);
      if (found != scopes_[i].end()) return slot_of(word, found->second);
    }
    static const std::map<std::string, Special> specials = {{"%tid.x", Special::tid_x},
                                                            {"%ntid.x", Special::ntid_x},
                                                            {"%ctaid.x", Special::ctaid_x},
                                                            {"%nctaid.x", Special::nctaid_x},
                                                            {"%laneid", Special::laneid}};
    const auto special = specials.find(word);
    if (special == specials.end()) fail("a name that is not known: " + word);
    const auto [found, is_new] = named_.try_emplace(word, 0);
    if (is_new) {
      found->second = static_cast<uint32_t>(new_slot(0));
      kernel_.special.push_back({found->second, special->second});
    }
    return found->second;
  }
  uint32_t slot_of(const std::string& word, const Name& name) {
    switch (name.kind) {
      case Kind::reg:
        return static_cast<uint32_t>(name.value);
      case Kind::constant:
        return constant(name.value);
      case Kind::shared:
        return constant(name.value << shared_shift);
      case Kind::parameter:
        break;
    }
    const auto [found, is_new] = named_.try_emplace(word, 0);
    if (is_new) {
      found->second = static_cast<uint32_t>(new_slot(0));
      kernel_.parameter_addresses.push_back({found->second, name.value});
    }
    return found->second;
  }
  uint32_t constant_scratch() { return static_cast<uint32_t>(new_slot(rubbish)); }

  Program* program_;
  std::string path_, text_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int target_ = 0;
  Names names_;                        // of the file
  std::vector<const Shared*> shared_;  // of the file, then of the kernel
  Kernel kernel_;
  std::vector<Names> scopes_;
  std::map<uint64_t, uint32_t> constants_;
  std::map<std::string, uint32_t> named_;  // slots of special registers and parameters
  std::map<std::string, uint32_t> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

const Kernel* Program::find(const std::string& name) {
  for (auto found = kernels_.find(name);; found = kernels_.find(name)) {
    if (found != kernels_.end()) return &found->second;
    bool is_read = false;
    for (size_t i = 0; i < paths_.size() && !is_read; i++) {
      std::ifstream file(paths_[i]);
      std::string text(std::istreambuf_iterator<char>(file), {});
      if (text.find(".entry " + name + "(") == std::string::npos) continue;
      Parser(this, paths_[i], std::move(text)).parse();
      paths_.erase(paths_.begin() + static_cast<std::ptrdiff_t>(i));
      is_read = true;
    }
    if (!is_read) return nullptr;
  }
}

}  // namespace ptx
