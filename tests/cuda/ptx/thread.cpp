// What each instruction does, by the PTX ISA. Compiled with -fwrapv: integers wrap.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cuda_runtime.h"
#include "ptx.h"

extern "C" void* __asan_region_is_poisoned(void* begin, size_t size) __attribute__((weak));

namespace ptx {

struct Thread {
  const Kernel& kernel;
  char* parameters;
  uint64_t* slots;
  std::vector<char*> shared;  // variables, nullptr: not asked for yet
  size_t next = 0;            // instruction
  bool carry = false, returned = false;
  std::vector<uint32_t> ran;  // how often each instruction, where that is counted
};

std::map<std::string, Counted> counted;
bool counts = false;

namespace {

template <class T>
T get(const Thread& t, uint32_t slot) {
  T value;
  std::memcpy(&value, &t.slots[slot], sizeof value);
  return value;
}
template <class T>
void set(Thread& t, uint32_t slot, T value) {
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  t.slots[slot] = word;
}
bool holds(const Thread& t, uint32_t slot) { return t.slots[slot] != 0; }

[[noreturn]] void fail(const Thread& t, const Instruction& i, const char* what) {
  emulator::fail("%s, in line %u of the PTX for %d of %s", what, i.line, t.kernel.target, t.kernel.name.c_str());
}

// A single-precision result that is NaN has these bits on a GPU, whatever came in.
float result(float x) {
  if (x == x) return x;
  const uint32_t bits = 0x7fffffff;
  std::memcpy(&x, &bits, 4);
  return x;
}
double result(double x) { return x; }
template <class T>
T result(T x) {
  return x;
}

// ---- arithmetic

template <class T>
struct Add {
  static T of(T a, T b) { return result(static_cast<T>(a + b)); }
};
template <class T>
struct Sub {
  static T of(T a, T b) { return result(static_cast<T>(a - b)); }
};
template <class T>
struct Mul {  // .lo of integers
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
    } else {
      return result(a * b);
    }
  }
};
template <class T>
struct Div {
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) return static_cast<T>(-1);
      if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(T{} - a);
    }
    return result(static_cast<T>(a / b));
  }
};
template <class T>
struct Rem {
  static T of(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
// The other side where one is NaN; -0 is below +0.
template <class T>
struct Min {
  static T of(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      if (a != a) return result(b);
      if (b != b) return a;
      if (a == b) return std::signbit(a) ? a : b;
    }
    return b < a ? b : a;
  }
};
template <class T>
struct Max {
  static T of(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      if (a != a) return result(b);
      if (b != b) return a;
      if (a == b) return std::signbit(a) ? b : a;
    }
    return a < b ? b : a;
  }
};
template <class T>
struct And {
  static T of(T a, T b) { return a & b; }
};
template <class T>
struct Or {
  static T of(T a, T b) { return a | b; }
};
template <class T>
struct Xor {
  static T of(T a, T b) { return a ^ b; }
};
template <class T>
struct MulHigh {
  static T of(T a, T b) {
    if constexpr (sizeof(T) == 8) {
      using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
      return static_cast<T>(static_cast<Wide>(a) * b >> 64);
    } else {
      using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
      return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> sizeof(T) * 8);
    }
  }
};
template <class T>
struct Neg {
  static T of(T a) { return static_cast<T>(-a); }
};
template <class T>
struct Abs {
  static T of(T a) {
    if constexpr (std::is_floating_point_v<T>) return std::fabs(a);
    return a < 0 ? static_cast<T>(-a) : a;
  }
};
template <class T>
struct Not {
  static T of(T a) { return static_cast<T>(~a); }
};
template <class T>
struct SquareRoot {
  static T of(T a) { return result(std::sqrt(a)); }
};
template <class T>
struct Reciprocal {
  static T of(T a) { return result(1 / a); }
};
template <class T>
struct Exp2 {  // .approx.ftz
  static T of(T a) {
    if (std::fabs(a) < std::numeric_limits<T>::min()) a = std::copysign(T{}, a);
    return result(emulator::exp2_approximate(a));
  }
};
template <class T>
struct CountOnes {
  static uint32_t of(T a) { return static_cast<uint32_t>(__builtin_popcountll(a)); }
};
template <class T>
struct LeadingZeros {
  static uint32_t of(T a) {
    constexpr int bits = sizeof(T) * 8;
    return static_cast<uint32_t>(a == 0 ? bits : __builtin_clzll(a) - (64 - bits));
  }
};

template <class T, class Operation>
void one(Thread& t, const Instruction& i) {
  set(t, i.to[0], Operation::of(get<T>(t, i.from[0])));
}
template <class T, class Operation>
void two(Thread& t, const Instruction& i) {
  set(t, i.to[0], Operation::of(get<T>(t, i.from[0]), get<T>(t, i.from[1])));
}
template <class T>
void fused_multiply_add(Thread& t, const Instruction& i) {
  set(t, i.to[0], result(std::fma(get<T>(t, i.from[0]), get<T>(t, i.from[1]), get<T>(t, i.from[2]))));
}
template <class T>
void multiply_add(Thread& t, const Instruction& i) {
  set(t, i.to[0], Add<T>::of(Mul<T>::of(get<T>(t, i.from[0]), get<T>(t, i.from[1])), get<T>(t, i.from[2])));
}
template <class T, class Wide>
void multiply_wide(Thread& t, const Instruction& i) {
  set(t, i.to[0], static_cast<Wide>(static_cast<Wide>(get<T>(t, i.from[0])) * static_cast<Wide>(get<T>(t, i.from[1]))));
}
// The distance is 32 bits; one of the width or more leaves nothing, or the sign.
template <class T>
void shift_left(Thread& t, const Instruction& i) {
  const uint32_t by = get<uint32_t>(t, i.from[1]);
  set(t, i.to[0], by >= sizeof(T) * 8 ? T{} : static_cast<T>(get<T>(t, i.from[0]) << by));
}
template <class T>
void shift_right(Thread& t, const Instruction& i) {
  const uint32_t by = get<uint32_t>(t, i.from[1]), most = sizeof(T) * 8 - 1;
  const T a = get<T>(t, i.from[0]);
  set(t, i.to[0], by <= most ? static_cast<T>(a >> by) : std::is_signed_v<T> ? static_cast<T>(a >> most) : T{});
}
template <class T>
void add_carry_out(Thread& t, const Instruction& i) {
  const T a = get<T>(t, i.from[0]), sum = static_cast<T>(a + get<T>(t, i.from[1]));
  t.carry = sum < a;
  set(t, i.to[0], sum);
}
// With what the sum before carried; .cc carries on.
template <class T>
void add_carry(Thread& t, const Instruction& i) {
  const T a = get<T>(t, i.from[0]), b = get<T>(t, i.from[1]), sum = static_cast<T>(a + b),
          all = static_cast<T>(sum + (t.carry ? 1 : 0));
  t.carry = sum < a || all < sum;
  set(t, i.to[0], all);
}
// The low bits of the first in place of `length` bits of the second from `position` on.
template <class T>
void insert_bits(Thread& t, const Instruction& i) {
  const uint32_t position = get<uint32_t>(t, i.from[2]) & 0xff, length = get<uint32_t>(t, i.from[3]) & 0xff;
  constexpr uint32_t bits = sizeof(T) * 8;
  T field = length >= bits ? static_cast<T>(~T{}) : static_cast<T>((T{1} << length) - 1);
  field = position >= bits ? T{} : static_cast<T>(field << position);
  const T moved = position >= bits ? T{} : static_cast<T>(get<T>(t, i.from[0]) << position);
  set(t, i.to[0], static_cast<T>((moved & field) | (get<T>(t, i.from[1]) & ~field)));
}
// `length` bits from `position` on.
void extract_bits(Thread& t, const Instruction& i) {
  const uint32_t position = get<uint32_t>(t, i.from[1]) & 0xff, length = get<uint32_t>(t, i.from[2]) & 0xff;
  const uint64_t above = position > 31 ? 0 : get<uint32_t>(t, i.from[0]) >> position;
  set(t, i.to[0], static_cast<uint32_t>(length > 31 ? above : above & ((uint64_t{1} << length) - 1)));
}
// The high word of both, the second above, after a shift to the left.
void shift_pair_left(Thread& t, const Instruction& i) {
  const uint64_t pair = get<uint32_t>(t, i.from[0]) | static_cast<uint64_t>(get<uint32_t>(t, i.from[1])) << 32;
  set(t, i.to[0], static_cast<uint32_t>(pair << (get<uint32_t>(t, i.from[2]) & 31) >> 32));
}
// Four bytes out of eight; the high bit of a choice spreads the sign of the byte.
void permute_bytes(Thread& t, const Instruction& i) {
  const uint64_t bytes = get<uint32_t>(t, i.from[0]) | static_cast<uint64_t>(get<uint32_t>(t, i.from[1])) << 32;
  const uint32_t choices = get<uint32_t>(t, i.from[2]);
  uint32_t word = 0;
  for (int k = 0; k < 4; k++) {
    const uint32_t choice = choices >> k * 4 & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (choice & 7) * 8) & 0xff;
    if (choice > 7) byte = byte > 127 ? 0xff : 0;
    word |= byte << k * 8;
  }
  set(t, i.to[0], word);
}

// ---- predicates, comparisons, moves

void not_predicate(Thread& t, const Instruction& i) { set<uint64_t>(t, i.to[0], holds(t, i.from[0]) ? 0 : 1); }
void and_predicates(Thread& t, const Instruction& i) {
  set<uint64_t>(t, i.to[0], holds(t, i.from[0]) && holds(t, i.from[1]) ? 1 : 0);
}
void or_predicates(Thread& t, const Instruction& i) {
  set<uint64_t>(t, i.to[0], holds(t, i.from[0]) || holds(t, i.from[1]) ? 1 : 0);
}
void xor_predicates(Thread& t, const Instruction& i) {
  set<uint64_t>(t, i.to[0], holds(t, i.from[0]) != holds(t, i.from[1]) ? 1 : 0);
}
template <class T>
void compare(Thread& t, const Instruction& i) {
  const T a = get<T>(t, i.from[0]), b = get<T>(t, i.from[1]);
  const bool is_nan = a != a || b != b;
  bool holds = false;
  switch (i.compare) {
    case Compare::eq: holds = a == b; break;
    case Compare::ne: holds = a != b && !is_nan; break;
    case Compare::lt: holds = a < b; break;
    case Compare::le: holds = a <= b; break;
    case Compare::gt: holds = a > b; break;
    case Compare::ge: holds = a >= b; break;
    case Compare::num: holds = !is_nan; break;
    case Compare::nan: holds = is_nan; break;
  }
  set<uint64_t>(t, i.to[0], holds || (i.unordered && is_nan) ? 1 : 0);
}
template <class T>
void select(Thread& t, const Instruction& i) {
  set(t, i.to[0], get<T>(t, holds(t, i.from[2]) ? i.from[0] : i.from[1]));
}
template <class T>
void move(Thread& t, const Instruction& i) {
  set(t, i.to[0], get<T>(t, i.from[0]));
}
void move_predicate(Thread& t, const Instruction& i) { set<uint64_t>(t, i.to[0], holds(t, i.from[0]) ? 1 : 0); }
// mov.b32 and mov.b64 take a register apart where the target is {a, b}, and put one together where the source is.
template <class T, class Half>
void move_bits(Thread& t, const Instruction& i) {
  constexpr int half = sizeof(Half) * 8;
  if (i.to[1] != 0) {
    const T whole = get<T>(t, i.from[0]);
    set(t, i.to[0], static_cast<Half>(whole));
    set(t, i.to[1], static_cast<Half>(whole >> half));
  } else if (i.from[1] != 0) {
    set(t, i.to[0], static_cast<T>(static_cast<T>(get<Half>(t, i.from[1])) << half | get<Half>(t, i.from[0])));
  } else {
    move<T>(t, i);
  }
}

// ---- conversions

int64_t signed_of(const Thread& t, uint32_t slot, Type type) {
  switch (type) {
    case Type::s8: return get<int8_t>(t, slot);
    case Type::s16: return get<int16_t>(t, slot);
    case Type::s32: return get<int32_t>(t, slot);
    case Type::u8: return get<uint8_t>(t, slot);
    case Type::u16: return get<uint16_t>(t, slot);
    case Type::u32: return get<uint32_t>(t, slot);
    default: return get<int64_t>(t, slot);
  }
}
float float_of_half(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fff;
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (magnitude > 0x7c00) return result(std::numeric_limits<float>::quiet_NaN());
  if (magnitude == 0x7c00) return sign * std::numeric_limits<float>::infinity();
  const int exponent = static_cast<int>(magnitude >> 10), fraction = static_cast<int>(magnitude & 0x3ff);
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25));
}
// To a format of 16 bits with `fraction` of them behind the point, the nearest, even where two are; NaN is all ones.
uint16_t to_16_bits(float x, int fraction, int least_exponent, int greatest_exponent) {
  if (x != x) return 0x7fff;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const uint16_t infinity = static_cast<uint16_t>((greatest_exponent - least_exponent + 2) << fraction);
  if (std::isinf(x)) return sign | infinity;
  if (x == 0) return sign;
  int exponent = std::ilogb(x);
  if (exponent < least_exponent) exponent = least_exponent;
  const double unit = std::ldexp(1.0, exponent - fraction);
  const double units = std::nearbyint(std::fabs(static_cast<double>(x)) / unit);  // 2^fraction and over where normal
  const int biased = exponent - least_exponent + 1;
  const int bits = static_cast<int>(units) + ((biased - 1) << fraction);  // a carry moves the exponent on
  return static_cast<uint16_t>(sign | (bits >= infinity ? infinity : bits));
}
double rounded(double x, Rounding rounding) {
  switch (rounding) {
    case Rounding::down: return std::floor(x);
    case Rounding::up: return std::ceil(x);
    case Rounding::toward_zero: return std::trunc(x);
    default: return std::nearbyint(x);
  }
}
// Saturates; NaN is 0, or 2^63 where 64 bits are on a side.
template <class T>
T integer_of(double x, bool from_double) {
  if (x != x) return from_double || sizeof(T) == 8 ? static_cast<T>(uint64_t{1} << (sizeof(T) * 8 - 1)) : T{};
  const double beyond = std::ldexp(1.0, static_cast<int>(sizeof(T) * 8) - (std::is_signed_v<T> ? 1 : 0));
  if (x >= beyond) return std::numeric_limits<T>::max();
  if (x <= (std::is_signed_v<T> ? -beyond : 0.0)) return std::numeric_limits<T>::min();
  return static_cast<T>(x);
}
template <class From>
void convert_float(Thread& t, const Instruction& i) {
  const From x = get<From>(t, i.from[0]);
  const bool from_double = sizeof(From) == 8;
  switch (i.type) {
    case Type::f32:
      // Of a float, an exact double loses nothing.
      return set(t, i.to[0], result(i.rounding == Rounding::nearest ? static_cast<float>(x)
                                                                     : static_cast<float>(rounded(x, i.rounding))));
    case Type::f64:
      return set(t, i.to[0], i.rounding == Rounding::nearest ? static_cast<double>(x) : rounded(x, i.rounding));
    case Type::s16: return set(t, i.to[0], integer_of<int16_t>(rounded(x, i.rounding), from_double));
    case Type::u16: return set(t, i.to[0], integer_of<uint16_t>(rounded(x, i.rounding), from_double));
    case Type::s32: return set(t, i.to[0], integer_of<int32_t>(rounded(x, i.rounding), from_double));
    case Type::u32: return set(t, i.to[0], integer_of<uint32_t>(rounded(x, i.rounding), from_double));
    case Type::s64: return set(t, i.to[0], integer_of<int64_t>(rounded(x, i.rounding), from_double));
    case Type::u64: return set(t, i.to[0], integer_of<uint64_t>(rounded(x, i.rounding), from_double));
    default: fail(t, i, "a conversion that is not known");
  }
}
void convert_integer(Thread& t, const Instruction& i) {
  const int64_t x = signed_of(t, i.from[0], i.from_type);
  const bool is_unsigned = i.from_type == Type::u64;
  switch (i.type) {
    case Type::f32:
      return set(t, i.to[0], is_unsigned ? static_cast<float>(static_cast<uint64_t>(x)) : static_cast<float>(x));
    case Type::f64:
      return set(t, i.to[0], is_unsigned ? static_cast<double>(static_cast<uint64_t>(x)) : static_cast<double>(x));
    // To a register that may be wider: the sign or zeros go on.
    case Type::s8: return set(t, i.to[0], static_cast<int64_t>(static_cast<int8_t>(x)));
    case Type::u8: return set(t, i.to[0], static_cast<uint8_t>(x));
    case Type::s16: return set(t, i.to[0], static_cast<int16_t>(x));
    case Type::u16: return set(t, i.to[0], static_cast<uint16_t>(x));
    case Type::s32: return set(t, i.to[0], static_cast<int32_t>(x));
    case Type::u32: return set(t, i.to[0], static_cast<uint32_t>(x));
    default: return set(t, i.to[0], x);
  }
}
void convert_half(Thread& t, const Instruction& i) { set(t, i.to[0], float_of_half(get<uint16_t>(t, i.from[0]))); }
// The first source above the second.
template <int fraction, int least_exponent, int greatest_exponent>
void convert_pair(Thread& t, const Instruction& i) {
  const auto bits = [&](int k) {
    return to_16_bits(get<float>(t, i.from[k]), fraction, least_exponent, greatest_exponent);
  };
  set(t, i.to[0], static_cast<uint32_t>(bits(0)) << 16 | bits(1));
}

// ---- memory

char* shared_variable(Thread& t, uint32_t index) {
  char*& place = t.shared[index];
  if (place == nullptr) {
    const Shared* const shared = t.kernel.shared[index];
    place = static_cast<char*>(shared->bytes == 0 ? emulator::dynamic_shared_memory()
                                                  : emulator::shared_memory(shared, shared->bytes));
  }
  return place;
}

// Where an address of the shared space is, for `bytes` from there on.
char* shared_place(Thread& t, const Instruction& i, uint32_t address, size_t bytes) {
  const uint32_t index = address >> shared_shift, offset = address & ((1u << shared_shift) - 1);
  if (index >= t.kernel.shared.size()) fail(t, i, "an address that is in no shared variable");
  const size_t all = t.kernel.shared[index]->bytes;
  if (all != 0 && offset + bytes > all) fail(t, i, "an access outside of a shared variable");
  return shared_variable(t, index) + offset;
}

char* place(Thread& t, const Instruction& i, size_t bytes) {
  const uint64_t address = t.slots[i.from[0]] + static_cast<uint64_t>(i.offset);
  char* p = reinterpret_cast<char*>(address);
  if (i.space == Space::shared) p = shared_place(t, i, static_cast<uint32_t>(address), bytes);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail(t, i, "an access that is not aligned");
  if (i.space == Space::global) {
    if (p >= t.parameters && p < t.parameters + t.kernel.parameter_bytes)
      fail(t, i, "an access to global memory at a parameter");
    for (size_t k = 0; k < t.kernel.shared.size(); k++) {
      if (t.shared[k] != nullptr && p >= t.shared[k] && p < t.shared[k] + t.kernel.shared[k]->bytes)
        fail(t, i, "an access to global memory at shared memory");
    }
  }
  if (__asan_region_is_poisoned != nullptr && __asan_region_is_poisoned(p, bytes) != nullptr)
    fail(t, i, "an access outside of what is allocated");
  return p;
}

size_t width(Type type) {
  switch (type) {
    case Type::b8:
    case Type::u8:
    case Type::s8: return 1;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16: return 2;
    case Type::b32:
    case Type::u32:
    case Type::s32:
    case Type::f32: return 4;
    default: return 8;
  }
}

void load(Thread& t, const Instruction& i) {
  const size_t bytes = width(i.type);
  if (counts && (i.space == Space::global || i.space == Space::generic)) counted[t.kernel.name].read += static_cast<double>(bytes * i.count);
  const char* const p = place(t, i, bytes * i.count);
  for (int k = 0; k < i.count; k++) {
    uint64_t word = 0;
    std::memcpy(&word, p + static_cast<size_t>(k) * bytes, bytes);
    if (i.type == Type::s8) word = static_cast<uint64_t>(static_cast<int64_t>(static_cast<int8_t>(word)));
    if (i.type == Type::s16) word = static_cast<uint64_t>(static_cast<int64_t>(static_cast<int16_t>(word)));
    t.slots[i.to[k]] = word;
  }
}
void store(Thread& t, const Instruction& i) {
  const size_t bytes = width(i.type);
  if (counts && (i.space == Space::global || i.space == Space::generic)) counted[t.kernel.name].written += static_cast<double>(bytes * i.count);
  char* const p = place(t, i, bytes * i.count);
  for (int k = 0; k < i.count; k++) std::memcpy(p + static_cast<size_t>(k) * bytes, &t.slots[i.from[k + 1]], bytes);
}

template <class T>
struct Exchange {
  static T of(T, T value) { return value; }
};
template <class T, class Operation>
void atomic(Thread& t, const Instruction& i) {
  T* const p = reinterpret_cast<T*>(place(t, i, sizeof(T)));
  const T value = get<T>(t, i.from[1]);
  set(t, i.to[0], emulator::change(p, [=](T before) { return Operation::of(before, value); }));
}
void fence(Thread&, const Instruction&) { emulator::fence(); }
// .acq_rel: what came before is seen by whoever sees it, what comes after sees what they wrote.
template <class T, class Operation>
void atomic_between_fences(Thread& t, const Instruction& i) {
  fence(t, i);
  atomic<T, Operation>(t, i);
  fence(t, i);
}

void shared_to_generic(Thread& t, const Instruction& i) {
  set(t, i.to[0], shared_place(t, i, get<uint32_t>(t, i.from[0]), 0));
}
void map_to_block(Thread& t, const Instruction& i) {
  set(t, i.to[0], emulator::cluster_shared(get<void*>(t, i.from[0]), get<int32_t>(t, i.from[1])));
}

// ---- control, and what threads do together

void branch(Thread& t, const Instruction& i) { t.next = i.target; }
void leave(Thread& t, const Instruction&) { t.returned = true; }
void trap(Thread& t, const Instruction& i) { fail(t, i, "a trap"); }
void block_barrier(Thread&, const Instruction&) { emulator::barrier(0, false, false); }
void wait_for_cluster(Thread&, const Instruction&) { emulator::cluster_barrier(); }
// The emulator has one barrier for both halves.
void arrive_for_cluster(Thread& t, const Instruction& i) {
  if (t.kernel.code[t.next].run != &wait_for_cluster) fail(t, i, "an arrival for the cluster that waits later");
}
void begin_next(Thread&, const Instruction&) { emulator::let_next_begin(); }
void wait_before(Thread&, const Instruction&) { emulator::wait_for_kernel_before(); }
void warp_barrier(Thread& t, const Instruction& i) {
  emulator::warp_vote(emulator::WarpOp::sync, get<uint32_t>(t, i.from[0]), 0);
}

enum class Shuffle { idx, up, down, bfly };
template <Shuffle how>
void shuffle(Thread& t, const Instruction& i) {
  const uint32_t lane = static_cast<uint32_t>(emulator::current->lane), a = get<uint32_t>(t, i.from[0]),
                 b = get<uint32_t>(t, i.from[1]) & 31, c = get<uint32_t>(t, i.from[2]);
  const uint32_t clamp = c & 31, segment = c >> 8 & 31, least = lane & segment, most = least | (clamp & ~segment);
  const int32_t source = how == Shuffle::up     ? static_cast<int32_t>(lane) - static_cast<int32_t>(b)
                         : how == Shuffle::down ? static_cast<int32_t>(lane + b)
                         : how == Shuffle::bfly ? static_cast<int32_t>(lane ^ b)
                                                : static_cast<int32_t>(least | (b & ~segment));
  const bool inside = how == Shuffle::up ? source >= static_cast<int32_t>(most) : source <= static_cast<int32_t>(most);
  const uint64_t value =
      emulator::warp_shuffle(get<uint32_t>(t, i.from[3]), a, inside ? source : static_cast<int32_t>(lane));
  set(t, i.to[0], static_cast<uint32_t>(value));
  if (i.to[1] != 0) set<uint64_t>(t, i.to[1], inside ? 1 : 0);
}
uint32_t ballot(Thread& t, const Instruction& i) {
  return static_cast<uint32_t>(
      emulator::warp_vote(emulator::WarpOp::ballot, get<uint32_t>(t, i.from[1]), holds(t, i.from[0]) ? 1 : 0));
}
void vote_ballot(Thread& t, const Instruction& i) { set(t, i.to[0], ballot(t, i)); }
void vote_all(Thread& t, const Instruction& i) {
  set<uint64_t>(t, i.to[0], ballot(t, i) == get<uint32_t>(t, i.from[1]) ? 1 : 0);
}
void vote_any(Thread& t, const Instruction& i) { set<uint64_t>(t, i.to[0], ballot(t, i) != 0 ? 1 : 0); }
template <class T, class Operation>
void reduce(Thread& t, const Instruction& i) {
  const uint32_t mask = get<uint32_t>(t, i.from[1]);
  const T own = get<T>(t, i.from[0]);
  T all = own;
  for (uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
    const uint64_t value = emulator::warp_shuffle(mask, static_cast<uint32_t>(own), __builtin_ctz(lanes));
    all = Operation::of(all, static_cast<T>(value));
  }
  set(t, i.to[0], all);
}

// ---- from names to functions

Type type_of(const std::string& name) {
  static const std::map<std::string, Type> types = {
      {"pred", Type::pred}, {"b8", Type::b8},   {"b16", Type::b16}, {"b32", Type::b32}, {"b64", Type::b64}, {"u8", Type::u8},
      {"u16", Type::u16},   {"u32", Type::u32}, {"u64", Type::u64}, {"s8", Type::s8},   {"s16", Type::s16}, {"s32", Type::s32},
      {"s64", Type::s64},   {"f16", Type::f16}, {"f32", Type::f32}, {"f64", Type::f64}};
  const auto found = types.find(name);
  return found == types.end() ? Type::none : found->second;
}

using Run = void (*)(Thread&, const Instruction&);

template <template <class> class Operation>
Run bits_two(Type type) {
  switch (width(type)) {
    case 2: return &two<uint16_t, Operation<uint16_t>>;
    case 4: return &two<uint32_t, Operation<uint32_t>>;
    default: return &two<uint64_t, Operation<uint64_t>>;
  }
}
template <template <class> class Operation>
Run integer_two(Type type) {
  switch (type) {
    case Type::u16: return &two<uint16_t, Operation<uint16_t>>;
    case Type::s16: return &two<int16_t, Operation<int16_t>>;
    case Type::u32: return &two<uint32_t, Operation<uint32_t>>;
    case Type::s32: return &two<int32_t, Operation<int32_t>>;
    case Type::u64: return &two<uint64_t, Operation<uint64_t>>;
    case Type::s64: return &two<int64_t, Operation<int64_t>>;
    default: return nullptr;
  }
}
template <template <class> class Operation>
Run number_two(Type type) {
  if (type == Type::f32) return &two<float, Operation<float>>;
  if (type == Type::f64) return &two<double, Operation<double>>;
  return integer_two<Operation>(type);
}
template <template <class> class Operation>
Run float_one(Type type) {
  return type == Type::f32 ? &one<float, Operation<float>> : type == Type::f64 ? &one<double, Operation<double>> : nullptr;
}
template <template <class> class Operation>
Run signed_one(Type type) {
  switch (type) {
    case Type::s16: return &one<int16_t, Operation<int16_t>>;
    case Type::s32: return &one<int32_t, Operation<int32_t>>;
    case Type::s64: return &one<int64_t, Operation<int64_t>>;
    default: return float_one<Operation>(type);
  }
}
template <template <class> class Operation>
Run bits_one(Type type) {
  switch (type) {
    case Type::b16: return &one<uint16_t, Operation<uint16_t>>;
    case Type::b32: return &one<uint32_t, Operation<uint32_t>>;
    case Type::b64: return &one<uint64_t, Operation<uint64_t>>;
    default: return nullptr;
  }
}
template <template <class> class Function>
Run by_number(Type type) {
  switch (type) {
    case Type::b16:
    case Type::u16: return Function<uint16_t>::run;
    case Type::s16: return Function<int16_t>::run;
    case Type::b32:
    case Type::u32: return Function<uint32_t>::run;
    case Type::s32: return Function<int32_t>::run;
    case Type::b64:
    case Type::u64: return Function<uint64_t>::run;
    case Type::s64: return Function<int64_t>::run;
    case Type::f32: return Function<float>::run;
    case Type::f64: return Function<double>::run;
    default: return nullptr;
  }
}
template <class T>
struct CompareOf {
  static constexpr Run run = &compare<T>;
};
template <class T>
struct SelectOf {
  static constexpr Run run = &select<T>;
};
template <class T>
struct MoveOf {
  static constexpr Run run = &move<T>;
};
template <template <class> class Operation>
Run atomic_of(Type type) {
  switch (type) {
    case Type::b32:
    case Type::u32: return &atomic<uint32_t, Operation<uint32_t>>;
    case Type::s32: return &atomic<int32_t, Operation<int32_t>>;
    case Type::b64:
    case Type::u64: return &atomic<uint64_t, Operation<uint64_t>>;
    case Type::s64: return &atomic<int64_t, Operation<int64_t>>;
    default: return nullptr;
  }
}

bool decode_compare(const std::string& name, bool is_float, Instruction* i) {
  static const std::map<std::string, Compare> ordered = {{"eq", Compare::eq}, {"ne", Compare::ne}, {"lt", Compare::lt},
                                                         {"le", Compare::le}, {"gt", Compare::gt}, {"ge", Compare::ge}};
  auto found = ordered.find(name);
  if (found == ordered.end() && is_float) {
    if (name == "num" || name == "nan") {
      i->compare = name == "num" ? Compare::num : Compare::nan;
      return true;
    }
    if (name.size() == 3 && name[2] == 'u') found = ordered.find(name.substr(0, 2));  // ltu
    i->unordered = true;
  }
  if (found == ordered.end()) return false;
  i->compare = found->second;
  return true;
}

bool decode_memory(const std::vector<std::string>& opcode, Instruction* i) {
  for (size_t k = 1; k + 1 < opcode.size(); k++) {
    const std::string& word = opcode[k];
    if (word == "global") {
      i->space = Space::global;
    } else if (word == "shared") {
      i->space = Space::shared;
    } else if (word == "param") {
      i->space = Space::parameter;
    } else if (word == "v2" || word == "v4") {
      i->count = static_cast<uint8_t>(word[1] - '0');
    } else if (word != "volatile" && word != "nc") {
      return false;
    }
  }
  return true;
}

bool decode_conversion(const std::vector<std::string>& opcode, Instruction* i) {
  if (opcode.size() < 3) return false;
  const Type to = type_of(opcode[opcode.size() - 2]), from = i->type;
  const bool from_float = from == Type::f32 || from == Type::f64;
  i->type = to;
  i->from_type = from;
  static const std::map<std::string, Rounding> roundings = {{"rn", Rounding::nearest},
                                                            {"rni", Rounding::to_integer},
                                                            {"rmi", Rounding::down},
                                                            {"rpi", Rounding::up},
                                                            {"rzi", Rounding::toward_zero}};
  if (opcode.size() == 4) {
    const auto found = roundings.find(opcode[1]);
    if (found == roundings.end()) return false;
    i->rounding = found->second;
    const std::string& pair = opcode[2];
    if (found->second == Rounding::nearest && from == Type::f32 && (pair == "f16x2" || pair == "bf16x2")) {
      i->run = pair == "f16x2" ? &convert_pair<10, -14, 15> : &convert_pair<7, -126, 127>;
      return true;
    }
  }
  if (opcode.size() > 4 || to == Type::none) return false;
  if (from == Type::f16) {
    i->run = to == Type::f32 ? &convert_half : nullptr;
  } else {
    i->run = from == Type::f32 ? &convert_float<float> : from_float ? &convert_float<double> : &convert_integer;
  }
  return i->run != nullptr;
}

Run known(const std::vector<std::string>& opcode) {
  static const std::map<std::string, Run> whole = {
      {"bra", &branch},
      {"bra.uni", &branch},
      {"ret", &leave},
      {"trap", &trap},
      {"bar.sync", &block_barrier},
      {"bar.warp.sync", &warp_barrier},
      {"barrier.cluster.arrive", &arrive_for_cluster},
      {"barrier.cluster.wait", &wait_for_cluster},
      {"griddepcontrol.launch_dependents", &begin_next},
      {"griddepcontrol.wait", &wait_before},
      {"membar.gl", &fence},
      {"mapa.u64", &map_to_block},
      {"cvta.shared.u64", &shared_to_generic},
      {"cvta.to.global.u64", &move<uint64_t>},
      {"shfl.sync.idx.b32", &shuffle<Shuffle::idx>},
      {"shfl.sync.up.b32", &shuffle<Shuffle::up>},
      {"shfl.sync.down.b32", &shuffle<Shuffle::down>},
      {"shfl.sync.bfly.b32", &shuffle<Shuffle::bfly>},
      {"vote.sync.ballot.b32", &vote_ballot},
      {"vote.sync.all.pred", &vote_all},
      {"vote.sync.any.pred", &vote_any},
      {"redux.sync.max.s32", &reduce<int32_t, Max<int32_t>>},
      {"ex2.approx.ftz.f32", &one<float, Exp2<float>>},
      {"fma.rn.f32", &fused_multiply_add<float>},
      {"fma.rn.f64", &fused_multiply_add<double>},
      {"mad.lo.s32", &multiply_add<uint32_t>},
      {"mad.lo.u32", &multiply_add<uint32_t>},
      {"mad.lo.s64", &multiply_add<uint64_t>},
      {"mad.lo.u64", &multiply_add<uint64_t>},
      {"mul.wide.u16", &multiply_wide<uint16_t, uint32_t>},
      {"mul.wide.s16", &multiply_wide<int16_t, int32_t>},
      {"mul.wide.u32", &multiply_wide<uint32_t, uint64_t>},
      {"mul.wide.s32", &multiply_wide<int32_t, int64_t>},
      {"add.cc.s32", &add_carry_out<uint32_t>},
      {"add.cc.u32", &add_carry_out<uint32_t>},
      {"add.cc.s64", &add_carry_out<uint64_t>},
      {"add.cc.u64", &add_carry_out<uint64_t>},
      {"addc.s32", &add_carry<uint32_t>},
      {"addc.u32", &add_carry<uint32_t>},
      {"addc.s64", &add_carry<uint64_t>},
      {"addc.u64", &add_carry<uint64_t>},
      {"addc.cc.s32", &add_carry<uint32_t>},
      {"addc.cc.u32", &add_carry<uint32_t>},
      {"addc.cc.s64", &add_carry<uint64_t>},
      {"addc.cc.u64", &add_carry<uint64_t>},
      {"prmt.b32", &permute_bytes},
      {"bfe.u32", &extract_bits},
      {"shf.l.wrap.b32", &shift_pair_left},
      {"bfi.b32", &insert_bits<uint32_t>},
      {"bfi.b64", &insert_bits<uint64_t>},
      {"shl.b16", &shift_left<uint16_t>},
      {"shl.b32", &shift_left<uint32_t>},
      {"shl.b64", &shift_left<uint64_t>},
      {"shr.u16", &shift_right<uint16_t>},
      {"shr.s16", &shift_right<int16_t>},
      {"shr.u32", &shift_right<uint32_t>},
      {"shr.b32", &shift_right<uint32_t>},
      {"shr.s32", &shift_right<int32_t>},
      {"shr.u64", &shift_right<uint64_t>},
      {"shr.b64", &shift_right<uint64_t>},
      {"shr.s64", &shift_right<int64_t>},
      {"not.pred", &not_predicate},
      {"and.pred", &and_predicates},
      {"or.pred", &or_predicates},
      {"xor.pred", &xor_predicates},
      {"mov.pred", &move_predicate},
      {"mov.b32", &move_bits<uint32_t, uint16_t>},
      {"mov.b64", &move_bits<uint64_t, uint32_t>},
  };
  std::string all = opcode[0];
  for (size_t k = 1; k < opcode.size(); k++) all += "." + opcode[k];
  const auto found = whole.find(all);
  return found == whole.end() ? nullptr : found->second;
}

}  // namespace

bool decode(const std::vector<std::string>& opcode, Instruction* i) {
  i->run = known(opcode);
  if (i->run != nullptr) return true;
  const std::string& name = opcode[0];
  i->type = type_of(opcode.back());
  if (opcode.size() < 2 || i->type == Type::none || i->type == Type::pred) return false;
  const Type type = i->type;
  const bool is_float = type == Type::f32 || type == Type::f64;
  const std::string& how = opcode[1];
  // .rn, or nothing between name and type.
  const bool plain = opcode.size() == 2, nearest = opcode.size() == 3 && how == "rn" && is_float;
  const bool exact = is_float ? nearest : plain;
  if (name == "ld" || name == "st") {
    i->run = name == "ld" ? &load : &store;
    return decode_memory(opcode, i);
  }
  if (name == "cvt") return decode_conversion(opcode, i);
  if (name == "setp" && opcode.size() == 3) {
    i->run = by_number<CompareOf>(type);
    return i->run != nullptr && decode_compare(how, is_float, i);
  }
  if (name == "atom" && opcode.size() == 6) {
    const std::vector<std::string> arrival = {"atom", "acq_rel", "gpu", "global", "add", "u32"};
    i->space = Space::global;
    i->run = opcode == arrival ? &atomic_between_fences<uint32_t, Add<uint32_t>> : nullptr;
  } else if (name == "atom" && opcode.size() == 4) {
    if (how != "global" && how != "shared") return false;
    i->space = how == "global" ? Space::global : Space::shared;
    const std::string& what = opcode[2];
    i->run = what == "add"    ? atomic_of<Add>(type)
             : what == "min"  ? atomic_of<Min>(type)
             : what == "max"  ? atomic_of<Max>(type)
             : what == "or"   ? atomic_of<Or>(type)
             : what == "exch" ? atomic_of<Exchange>(type)
                              : nullptr;
  } else if (name == "add" && exact) {
    i->run = number_two<Add>(type);
  } else if (name == "sub" && exact) {
    i->run = number_two<Sub>(type);
  } else if (name == "mul" && (nearest || (opcode.size() == 3 && how == "lo"))) {
    i->run = number_two<Mul>(type);
  } else if (name == "mul" && opcode.size() == 3 && how == "hi") {
    i->run = integer_two<MulHigh>(type);
  } else if (name == "div" && exact) {
    i->run = number_two<Div>(type);
  } else if (name == "rem" && plain) {
    i->run = integer_two<Rem>(type);
  } else if (name == "min" && plain) {
    i->run = number_two<Min>(type);
  } else if (name == "max" && plain) {
    i->run = number_two<Max>(type);
  } else if (name == "and" && plain) {
    i->run = bits_two<And>(type);
  } else if (name == "or" && plain) {
    i->run = bits_two<Or>(type);
  } else if (name == "xor" && plain) {
    i->run = bits_two<Xor>(type);
  } else if (name == "not" && plain) {
    i->run = bits_one<Not>(type);
  } else if (name == "neg" && plain) {
    i->run = signed_one<Neg>(type);
  } else if (name == "abs" && plain) {
    i->run = signed_one<Abs>(type);
  } else if (name == "sqrt" && nearest) {
    i->run = float_one<SquareRoot>(type);
  } else if (name == "rcp" && nearest) {
    i->run = float_one<Reciprocal>(type);
  } else if (name == "popc" && plain) {
    i->run = bits_one<CountOnes>(type);
  } else if (name == "clz" && plain) {
    i->run = bits_one<LeadingZeros>(type);
  } else if (name == "selp" && plain) {
    i->run = by_number<SelectOf>(type);
  } else if (name == "mov" && plain) {
    i->run = by_number<MoveOf>(type);
  }
  return i->run != nullptr;
}

namespace {

// Lanes of a warp run an instruction together as often as they can: as often as the one that runs it most.
void count_warp(const Thread& t) {
  struct Warp {
    std::vector<uint32_t> most;
    unsigned lanes = 0;
  };
  static std::map<std::pair<const Kernel*, uint64_t>, Warp> warps;
  const emulator::Thread& self = *emulator::current;
  const auto key = std::make_pair(&t.kernel, static_cast<uint64_t>(self.block.x) << 5 | static_cast<uint64_t>(self.warp));
  Warp& warp = warps[key];
  warp.most.resize(t.ran.size());
  for (size_t i = 0; i < t.ran.size(); i++) warp.most[i] = t.ran[i] > warp.most[i] ? t.ran[i] : warp.most[i];
  const unsigned in_block = self.threads.x, first = static_cast<unsigned>(self.warp) * 32;
  if (++warp.lanes < (in_block - first < 32 ? in_block - first : 32)) return;
  Counted& all = counted[t.kernel.name];
  for (size_t i = 0; i < warp.most.size(); i++) {
    const float times = static_cast<float>(warp.most[i]);
    const Work& work = t.kernel.code[i].work;
    all.work.single += times * work.single;
    all.work.integer += times * work.integer;
    all.work.convert += times * work.convert;
    all.work.twice += times * work.twice;
    all.work.memory += times * work.memory;
    all.work.other += times * work.other;
  }
  warps.erase(key);
}

}  // namespace

void run(const Kernel& kernel, char* parameters) {
  // Registers hold what another thread left in them; constants are never written.
  if (kernel.spare.empty()) kernel.spare.push_back(kernel.slots);
  std::vector<uint64_t> slots = std::move(kernel.spare.back());
  kernel.spare.pop_back();
  Thread t{kernel, parameters, slots.data(), std::vector<char*>(kernel.shared.size()), 0, false, false, {}};
  const emulator::Thread& self = *emulator::current;
  for (const auto& [slot, special] : kernel.special) {
    t.slots[slot] = special == Special::tid_x      ? self.thread.x
                    : special == Special::ntid_x   ? self.threads.x
                    : special == Special::ctaid_x  ? self.block.x
                    : special == Special::nctaid_x ? self.blocks.x
                                                   : static_cast<unsigned>(self.lane);
  }
  for (const auto& [slot, offset] : kernel.parameter_addresses) t.slots[slot] = reinterpret_cast<uint64_t>(parameters + offset);
  if (counts) t.ran.resize(kernel.code.size());
  while (!t.returned) {
    if (counts) t.ran[t.next]++;
    const Instruction& i = kernel.code[t.next++];
    if (i.guarded && holds(t, i.guard) == i.unless) continue;
    i.run(t, i);
  }
  if (counts) count_warp(t);
  kernel.spare.push_back(std::move(slots));
}

}  // namespace ptx
