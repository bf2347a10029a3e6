// What instructions keep busy, on a GPU of compute capability 9.0.
#include "ptx.h"

namespace ptx {

Work work_of(const std::vector<std::string>& opcode) {
  const std::string& name = opcode[0];
  const std::string& type = opcode.back();
  const bool is_long = type == "s64" || type == "u64" || type == "b64", is_single = type == "f32", is_double = type == "f64";
  const auto has = [&](const char* word) {
    for (const std::string& part : opcode) {
      if (part == word) return true;
    }
    return false;
  };
  Work work;
  if (name == "mov" || name == "cvta" || name == "ret" || has("param")) return work;
  if (name == "ld" || name == "st" || name == "atom" || name == "shfl" || name == "vote" || name == "redux") {
    work.memory = 1;
  } else if (name == "bra" || name == "bar" || name == "barrier" || name == "membar" || name == "griddepcontrol" ||
             name == "mapa" || name == "trap") {
    work.other = 1;
  } else if (is_double && name != "setp" && name != "cvt") {
    work.twice = name == "div" || name == "rcp" || name == "sqrt" ? 10 : 1;
  } else if (name == "cvt") {
    const std::string& to = opcode[opcode.size() - 2];
    if (type[0] == 'f' || to[0] == 'f' || to[0] == 'b') {
      work.convert = 1;
    } else if (to == "s64" || to == "u64") {
      work.integer = 1;  // the others are moves
    }
  } else if (name == "ex2") {
    work.convert = 1;
  } else if (name == "rcp" || name == "div" || name == "sqrt" || name == "rem") {
    // One approximation, then Newton's steps; a branch to the rare cases.
    work.convert = is_single ? 1 : 3;
    work.single = is_single ? 8 : is_long ? 60 : 12;
    work.other = 1;
  } else if (name == "popc" || name == "clz") {
    work.convert = 1;
  } else if (is_single && (name == "add" || name == "sub" || name == "mul" || name == "fma")) {
    work.single = 1;
  } else if (name == "mul" || name == "mad") {
    work.single = is_long ? 4 : has("wide") ? 2 : 1;
  } else {
    work.integer = is_long ? 2 : 1;
  }
  return work;
}

}  // namespace ptx
