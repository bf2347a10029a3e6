// Do instructions of PTX do what the PTX ISA says, and are wrong accesses noticed? Small kernels of a line or two.
#include "ptx/ptx.h"

#include <unistd.h>

#include <cinttypes>
#include <string>
#include <vector>

#include "device_test.h"

namespace {

using namespace esp_test;

// A program of the kernels `text`, each with a parameter `out`, registers r0 to r9, d0 to d9, f0 to f9 and predicates p0 to p9.
class Written {
 public:
  explicit Written(const std::string& text) : path_(write_file(text)), program_({path_}) {}
  Written(const Written&) = delete;
  ~Written() { unlink(path_.c_str()); }
  static std::string kernel(const std::string& name, const std::string& body) {
    return ".entry " + name + "(\n.param .u64 out\n)\n.maxntid 64, 1, 1\n{\n.reg .pred p<10>;\n.reg .b16 h<10>;\n.reg .b32 r<10>;\n" +
           ".reg .f32 f<10>;\n.reg .f64 e<10>;\n.reg .b64 d<10>;\n.shared .align 8 .b8 own[64];\n" +
           "ld.param.u64 d0, [out];\n" + body + "\nret;\n}\n";
  }
  // Runs a block of threads.
  bool run(const std::string& name, const void* out, unsigned threads) {
    const ptx::Kernel* const kernel = program_.find(name);
    CHECK(kernel != nullptr);
    if (kernel == nullptr) return false;
    struct Call {
      const ptx::Kernel* kernel;
      const void* out;
    };
    return emulator::queue_launch(
               kernel, [](void* p) { ptx::run(*static_cast<Call*>(p)->kernel, reinterpret_cast<char*>(&static_cast<Call*>(p)->out)); },
               new Call{kernel, out}, [](void* p) { delete static_cast<Call*>(p); }, {1, threads, 0, 1}, nullptr) == cudaSuccess &&
           cudaStreamSynchronize(nullptr) == cudaSuccess;
  }

 private:
  static std::string write_file(const std::string& text) {
    const char* const folder = std::getenv("TMPDIR");
    std::string path = std::string(folder == nullptr ? "/tmp" : folder) + "/ptx_testXXXXXX";
    const int file = mkstemp(path.data());
    const std::string all = ".version 9.0\n.target sm_90\n.address_size 64\n" + text;
    CHECK(write(file, all.data(), all.size()) == static_cast<ssize_t>(all.size()));
    close(file);
    return path;
  }
  std::string path_;
  ptx::Program program_;
};

struct Case {
  const char* code;  // leaves its result in d9
  uint64_t expected;
};
const Case cases[] = {
    // The NaN of a GPU, whatever comes in; but bits that are only moved stay.
    {"mov.b32 f1, 0f7fc12345; add.rn.f32 f2, f1, 0f3f800000; mov.b32 r1, f2; cvt.u64.u32 d9, r1;", 0x7fffffff},
    {"mov.b32 f1, 0fffc12345; mov.f32 f2, f1; mov.b32 r1, f2; cvt.u64.u32 d9, r1;", 0xffc12345},
    {"mov.b32 f1, 0f7fc12345; min.f32 f2, f1, 0f40000000; mov.b32 r1, f2; cvt.u64.u32 d9, r1;", 0x40000000},
    {"mov.b32 f1, 0f00000000; max.f32 f2, 0f80000000, f1; mov.b32 r1, f2; cvt.u64.u32 d9, r1;", 0},
    {"mov.b32 f1, 0f3f800001; fma.rn.f32 f2, f1, f1, 0fbf800002; mov.b32 r1, f2; cvt.u64.u32 d9, r1;", 0x28800000},
    {"mov.b32 f1, 0f3f800001; mul.rn.f32 f2, f1, f1; sub.rn.f32 f2, f2, 0f3f800002; mov.b32 r1, f2; cvt.u64.u32 d9, r1;", 0},
    {"cvt.f64.f32 e1, 0f3f000000; mov.b64 d9, e1;", 0x3fe0000000000000},
    // Conversions: which half is which, ties to even, subnormal, too large, NaN.
    {"cvt.rn.bf16x2.f32 r1, 0f3f808000, 0f3f818000; cvt.u64.u32 d9, r1;", 0x3f803f82},
    {"cvt.rn.bf16x2.f32 r1, 0fff7fffff, 0f7fc12345; cvt.u64.u32 d9, r1;", 0xff807fff},
    {"cvt.rn.f16x2.f32 r1, 0f477ff000, 0f477fefff; cvt.u64.u32 d9, r1;", 0x7c007bff},
    {"cvt.rn.f16x2.f32 r1, 0f33000000, 0f33000001; cvt.u64.u32 d9, r1;", 0x00000001},
    {"{ .reg .b16 l, h; mov.b32 {l, h}, 0x3c00fc00; cvt.f32.f16 f1, l; cvt.f32.f16 f2, h; } mov.b64 d9, {f1, f2};",
     0x3f800000ff800000},
    {"mov.b32 r1, 0x00018001; mov.b32 {h1, h2}, r1; cvt.f32.f16 f1, h1; cvt.f32.f16 f2, h2; mov.b64 d9, {f1, f2};",
     0x33800000b3800000},
    {"cvt.rzi.s32.f32 r1, 0fff000000; cvt.u64.u32 d9, r1;", 0x80000000},
    {"cvt.rzi.s32.f32 r1, 0f7fc00000; cvt.u64.u32 d9, r1;", 0},
    {"cvt.rzi.s64.f64 d9, 0d7ff8000000000000;", 0x8000000000000000},
    {"cvt.rni.f32.f32 f1, 0f40200000; cvt.rpi.f32.f32 f2, 0f40200000; mov.b64 d9, {f1, f2};", 0x4040000040000000},
    {"cvt.rn.f32.s32 f1, 16777217; mov.b32 r1, f1; cvt.u64.u32 d9, r1;", 0x4b800000},
    {"mov.u16 h1, 0xff80; cvt.s16.s8 h2, h1; cvt.u64.u16 d9, h2;", 0xff80},
    {"mov.u32 r1, -2; cvt.s64.s32 d9, r1;", 0xfffffffffffffffe},
    // Integers.
    {"shl.b32 r1, 1, 32; cvt.u64.u32 d9, r1;", 0},
    {"shr.s32 r1, -5, 40; cvt.u64.u32 d9, r1;", 0xffffffff},
    {"mul.wide.s32 d9, -3, 5;", 0xfffffffffffffff1},
    {"mul.hi.u64 d9, 0xffffffffffffffff, 0xffffffffffffffff;", 0xfffffffffffffffe},
    {"mul.hi.s64 d9, -1, 5;", 0xffffffffffffffff},
    {"add.cc.s64 d1, -1, 2; addc.cc.s64 d9, 5, 6;", 12},
    {"div.s32 r1, -7, 2; rem.s32 r2, -7, 2; mov.b64 d9, {r1, r2};", 0xfffffffffffffffd},
    {"prmt.b32 r1, 0x44332211, 0x88776655, 0x7f04; cvt.u64.u32 d9, r1;", 0x88ff1155},
    {"bfi.b32 r1, 0x3ff, 0, 4, 8; cvt.u64.u32 d9, r1;", 0xff0},
    {"bfe.u32 r1, 0x12345678, 8, 12; bfe.u32 r2, 0x12345678, 28, 32; mov.b64 d9, {r1, r2};", 0x0000000100000456},
    {"shf.l.wrap.b32 r1, 0x80000001, 0x00000002, 33; cvt.u64.u32 d9, r1;", 5},
    {"clz.b64 r1, 1; popc.b32 r2, 0xf0f; mov.b64 d9, {r1, r2};", 0x000000080000003f},
    // Comparisons.
    {"setp.lt.f32 p1, 0f7fc00000, 0f3f800000; selp.b64 d9, 1, 2, p1;", 2},
    {"setp.geu.f32 p1, 0f7fc00000, 0f3f800000; selp.b64 d9, 1, 2, p1;", 1},
    {"setp.ne.f32 p1, 0f7fc00000, 0f3f800000; selp.b64 d9, 1, 2, p1;", 2},
    {"setp.lt.u32 p1, -1, 1; not.pred p2, p1; mov.u64 d9, 3; @p1 mov.u64 d9, 4; @!p2 mov.u64 d9, 5;", 3},
    {"mov.u64 d9, 7; bra over; mov.u64 d9, 8; over: add.s64 d9, d9, 1;", 8},
    // Memory.
    {"mov.u32 r1, own; st.shared.v2.u32 [r1+8], {17, 18}; ld.shared.u64 d9, [r1+8];", 0x1200000011},
    {"mov.u32 r1, own; st.shared.u8 [r1+3], 0x1fe; cvt.u64.u32 d1, r1; cvta.shared.u64 d2, d1; ld.u8 r2, [d2+3]; "
     "cvt.u64.u32 d9, r2;",
     0xfe},
    {"mov.u32 r1, own; st.shared.u8 [r1], 0xfe; ld.shared.s8 r2, [r1]; cvt.s64.s32 d9, r2;", 0xfffffffffffffffe},
    {"mov.u32 r1, own; st.shared.u32 [r1], 5; atom.shared.add.u32 r2, [r1], 6; ld.shared.u32 r3, [r1]; mov.b64 d9, {r2, r3};",
     0x0000000b00000005},
};

void instructions() {
  std::string body;
  int number = 0;
  for (const Case& one : cases) {
    std::string code = one.code;
    for (size_t at; (at = code.find("over")) != std::string::npos;) code.replace(at, 4, "next" + std::to_string(number));
    body += code + "\nst.global.u64 [d0+" + std::to_string(number++ * 8) + "], d9;\n";
  }
  Written written(Written::kernel("all", body));
  const Device<uint64_t> out(number);
  CHECK(written.run("all", out.get(), 1));
  const std::vector<uint64_t> results = out.values();
  for (size_t i = 0; i < results.size(); i++) {
    CHECK(results[i] == cases[i].expected);
    if (results[i] != cases[i].expected)
      std::printf("%s\n  gave %" PRIx64 ", not %" PRIx64 "\n", cases[i].code, results[i], cases[i].expected);
  }
}

// What the lanes 0, 9 and 31 get of each other's numbers, and whether they got it.
void shuffles() {
  struct Shuffle {
    const char* how;
    uint32_t expected[3];
  };
  const Shuffle all[] = {{"idx.b32 r2|p1, r1, 3, 31", {0x10003, 0x10003, 0x10003}},
                         {"idx.b32 r2|p1, r1, 9, 6175", {0x10001, 0x10009, 0x10019}},  // in groups of 8
                         {"up.b32 r2|p1, r1, 1, 0", {0, 0x10008, 0x1001e}},
                         {"down.b32 r2|p1, r1, 2, 31", {0x10002, 0x1000b, 31}},
                         {"bfly.b32 r2|p1, r1, 16, 31", {0x10010, 0x10019, 0x1000f}}};
  for (const Shuffle& one : all) {
    Written written(Written::kernel(
        "shuffle", std::string("mov.u32 r1, %tid.x; shfl.sync.") + one.how +
                       ", -1; selp.u32 r3, 65536, 0, p1; or.b32 r2, r2, r3; mul.wide.u32 d1, r1, 4; add.s64 d0, d0, d1; "
                       "st.global.u32 [d0], r2;"));
    const Device<uint32_t> out(32);
    CHECK(written.run("shuffle", out.get(), 32));
    const std::vector<uint32_t> got = out.values();
    CHECK(got[0] == one.expected[0] && got[9] == one.expected[1] && got[31] == one.expected[2]);
  }
}

void wrong_accesses() {
  struct Wrong {
    const char *body, *report;
  };
  const Wrong all[] = {
      {"ld.global.u32 r1, [d0+2];", "not aligned"},
      {"ld.global.v2.u64 {d1, d2}, [d0+8];", "not aligned"},
      {"mov.u32 r1, own; ld.shared.u32 r2, [r1+64];", "outside of a shared variable"},
      {"mov.u32 r1, own; add.s32 r1, r1, 0x7fe00000; ld.shared.u32 r2, [r1];", "in no shared variable"},
      {"mov.u32 r1, own; cvt.u64.u32 d1, r1; cvta.shared.u64 d2, d1; ld.global.u32 r2, [d2];", "global memory at shared memory"},
      {"mov.b64 d1, out; ld.global.u32 r2, [d1];", "global memory at a parameter"},
      {"st.global.u32 [d0+64], r1;", "outside of what is allocated"},
      {"trap;", "a trap"},
      {"setp.eq.s32 p1, 0, 0; @p1 bra there; bar.sync 0; there:", ""},
      {"mov.u32 r1, %tid.x; shfl.sync.bfly.b32 r2|p1, r1, 1, 31, 1;", "lacks its own lane"},
  };
  for (const Wrong& one : all) {
    Written written(Written::kernel("wrong", one.body));
    const Device<uint32_t> out(16);
    const bool is_wrong = one.report[0] != 0;
    CHECK(written.run("wrong", out.get(), 32) != is_wrong);
    CHECK(std::string(emulator::failure()).find(one.report) != std::string::npos);
    emulator::reset();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--unknown") == 0) {
    Written(Written::kernel("unknown", "frobnicate.b32 r1, r2;")).run("unknown", nullptr, 1);
    return 0;
  }
  return run_tests(argc, argv, [](const Setting&) {
    instructions();
    shuffles();
    wrong_accesses();
  });
}
