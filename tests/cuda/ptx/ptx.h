// Runs PTX on the emulator: the code that nvcc makes of the kernels, in place of the kernels as the host compiler sees them.
// What only nvcc sees is proven so: inline PTX, the device's own instructions, what its optimizer moves past a barrier or a
// wait, spaces of addresses, and NaN as a GPU gives it. What ptxas makes of the PTX is not.
//
// runtime.cpp beside this file takes the place of the CUDA runtime for objects that nvcc compiled: it finds a kernel's
// PTX by the name that they register, and the emulator schedules its threads.
//
// It knows the instructions that the kernels of this project have; any other is an error when a file is read. It reports, with
// block, thread and line of the file: accesses that are not aligned; outside of a shared variable; by ld.global or st.global
// of memory that is not global; under ASAN outside of an allocation; and a trap.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

namespace ptx {

struct Thread;

enum class Type : uint8_t { none, pred, b8, b16, b32, b64, u8, u16, u32, u64, s8, s16, s32, s64, f16, f32, f64 };
enum class Space : uint8_t { generic, global, shared, parameter };
enum class Compare : uint8_t { eq, ne, lt, le, gt, ge, num, nan };
enum class Rounding : uint8_t { nearest, to_integer, down, up, toward_zero };  // to_integer: the nearest, even where two are

// What an instruction keeps busy, in instructions of a warp, each of which also takes an issue slot: a guess at what ptxas makes
// of it. Moves are taken to vanish.
struct Work {
  float single = 0;   // additions, multiplications and fma of single precision, products of integers
  float integer = 0;  // all other arithmetic of integers, logic, comparisons, selections, minima and maxima
  float convert = 0;  // conversions, 2^x, reciprocals, roots
  float twice = 0;    // double precision
  float memory = 0;   // loads, stores, shuffles
  float other = 0;    // branches and barriers
};

// Operands are numbers of slots: registers, constants and special registers alike.
struct Instruction {
  void (*run)(Thread&, const Instruction&) = nullptr;
  uint32_t to[4] = {}, from[5] = {};
  int64_t offset = 0;  // of an address
  uint32_t target = 0, guard = 0, line = 0;
  bool guarded = false, unless = false;  // run if, or unless, slot `guard` holds
  bool unordered = false;                // a comparison holds where one side is NaN
  uint8_t count = 1;                     // elements of a vector
  Type type = Type::none, from_type = Type::none;
  Space space = Space::generic;
  Compare compare = Compare::eq;
  Rounding rounding = Rounding::nearest;
  Work work;
};

struct Parameter {
  size_t offset, bytes;
};
// Memory of a block; `bytes` is 0 for what the launch gives.
struct Shared {
  std::string name;
  size_t bytes;
};
enum class Special : uint8_t { tid_x, ntid_x, ctaid_x, nctaid_x, laneid };

struct Kernel {
  std::string name;
  int target = 0;  // compute capability, as 10 * major + minor
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  std::vector<Instruction> code;
  std::vector<uint64_t> slots;  // when a thread begins: constants, and rubbish in registers
  std::vector<std::pair<uint32_t, Special>> special;
  std::vector<std::pair<uint32_t, size_t>> parameter_addresses;  // slots, and offsets
  // Variable v lies from v << shared_shift on in the shared space, whose addresses have 32 bits.
  std::vector<const Shared*> shared;
  mutable std::vector<std::vector<uint64_t>> spare;  // slots of threads that have ended
};
constexpr int shared_shift = 20;

// The kernels of some files, each of which is read when a kernel in it is asked for.
class Program {
 public:
  explicit Program(std::vector<std::string> paths) : paths_(std::move(paths)) {}
  // nullptr: in no file. Ends the process with a message where a file holds what is not known.
  const Kernel* find(const std::string& name);

 private:
  friend class Parser;
  std::vector<std::string> paths_;  // not read yet
  std::deque<Shared> shared_;
  std::deque<std::vector<char>> globals_;
  std::map<std::string, Kernel> kernels_;
};

// Sets run, type and the like of an instruction from its opcode, such as {"ld", "global", "v2", "f32"}. False: not known.
bool decode(const std::vector<std::string>& opcode, Instruction* instruction);

// The work of an opcode.
Work work_of(const std::vector<std::string>& opcode);

// What the kernels of a name did while `counts` was set.
struct Counted {
  Work work;      // of warps: lanes that go different ways count one after the other
  double read = 0, written = 0;  // bytes of global memory that threads asked for; of what all ask for alike, each time
};
extern std::map<std::string, Counted> counted;
extern bool counts;

// One thread of the kernel, called on a fiber of the emulator.
void run(const Kernel& kernel, char* parameters);

}  // namespace ptx
