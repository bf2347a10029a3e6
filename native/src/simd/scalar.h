// Quads of 4 lanes in the compiler's own vector types, without an instruction of a particular processor: the variant for
// every other processor, and the one that the others are compared with.
#pragma once

namespace {

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));

struct f32x16 {
  f32x4 q[4];
};
struct i32x16 {
  i32x4 q[4];
};
struct mask16 {
  i32x4 q[4];  // -1 where true, otherwise 0
};

// All lanes of a result by quads: the expression of quad i. By lanes: that of lane i, out of line, for what has no vector
// form; unrolled everywhere it would take the compiler minutes.
#define ESP_QUADS(Result, expression)                                                   \
  const auto quad = [&](int i) __attribute__((always_inline)) { return (expression); }; \
  return Result{{quad(0), quad(1), quad(2), quad(3)}}
#define ESP_LANES for (int i = 0; i < 16; i++)
#define ESP_OUT_OF_LINE static inline __attribute__((noinline))

ESP_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
ESP_INLINE float float_of_bits(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

template <class T>
ESP_INLINE T read(const void* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}
template <class T, class Lane>
ESP_INLINE T read_n(const Lane* p, int64_t n) {
  T value = {};
  __builtin_memcpy(&value, p, static_cast<size_t>(n) * sizeof(Lane));
  return value;
}

ESP_INLINE f32x4 quad_of(float x) { return f32x4{x, x, x, x}; }
ESP_INLINE i32x4 quad_of(int32_t x) { return i32x4{x, x, x, x}; }
ESP_INLINE u32x4 quad_of(uint32_t x) { return u32x4{x, x, x, x}; }
ESP_INLINE f32x16 set1(float x) { ESP_QUADS(f32x16, (static_cast<void>(i), quad_of(x))); }
ESP_INLINE i32x16 set1(int32_t x) { ESP_QUADS(i32x16, (static_cast<void>(i), quad_of(x))); }
ESP_INLINE i32x16 lane_index() { ESP_QUADS(i32x16, (quad_of(4 * i) + i32x4{0, 1, 2, 3})); }
ESP_INLINE f32x16 load(const float* p) { return read<f32x16>(p); }
ESP_INLINE i32x16 load(const int32_t* p) { return read<i32x16>(p); }
ESP_INLINE f32x16 load_n(const float* p, int64_t n) { return read_n<f32x16>(p, n); }
ESP_INLINE i32x16 load_n(const int32_t* p, int64_t n) { return read_n<i32x16>(p, n); }
ESP_INLINE void store(float* p, f32x16 a) { __builtin_memcpy(p, &a, sizeof a); }
ESP_INLINE void store(int32_t* p, i32x16 a) { __builtin_memcpy(p, &a, sizeof a); }
ESP_INLINE void store_n(float* p, f32x16 a, int64_t n) { __builtin_memcpy(p, &a, static_cast<size_t>(n) * 4); }
ESP_INLINE void store_n(int32_t* p, i32x16 a, int64_t n) { __builtin_memcpy(p, &a, static_cast<size_t>(n) * 4); }
ESP_INLINE void stream(float* p, f32x16 a) { store(p, a); }
ESP_INLINE void fence() {}

ESP_INLINE f32x4 choose(i32x4 m, f32x4 yes, f32x4 no) { return (f32x4)(((i32x4)yes & m) | ((i32x4)no & ~m)); }
ESP_INLINE u32x4 choose(i32x4 m, u32x4 yes, u32x4 no) { return (yes & (u32x4)m) | (no & (u32x4)~m); }
ESP_INLINE i32x4 choose(i32x4 m, i32x4 yes, i32x4 no) { return (yes & m) | (no & ~m); }

ESP_INLINE f32x16 operator+(f32x16 a, f32x16 b) { ESP_QUADS(f32x16, a.q[i] + b.q[i]); }
ESP_INLINE f32x16 operator-(f32x16 a, f32x16 b) { ESP_QUADS(f32x16, a.q[i] - b.q[i]); }
ESP_INLINE f32x16 operator*(f32x16 a, f32x16 b) { ESP_QUADS(f32x16, a.q[i] * b.q[i]); }
ESP_INLINE f32x16 operator/(f32x16 a, f32x16 b) { ESP_QUADS(f32x16, a.q[i] / b.q[i]); }
ESP_OUT_OF_LINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  float x[16], y[16], z[16];
  store(x, a);
  store(y, b);
  store(z, c);
  ESP_LANES { z[i] = __builtin_fmaf(x[i], y[i], z[i]); }
  return load(z);
}
ESP_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) {
  const auto negative = [&]() __attribute__((always_inline)) { ESP_QUADS(f32x16, -a.q[i]); };
  return fma(negative(), b, c);
}
ESP_INLINE f32x16 min(f32x16 a, f32x16 b) { ESP_QUADS(f32x16, choose(a.q[i] < b.q[i], a.q[i], b.q[i])); }
ESP_INLINE f32x16 max(f32x16 a, f32x16 b) { ESP_QUADS(f32x16, choose(a.q[i] > b.q[i], a.q[i], b.q[i])); }
ESP_INLINE f32x4 abs(f32x4 a) { return (f32x4)((i32x4)a & quad_of(INT32_MAX)); }
ESP_INLINE f32x16 abs(f32x16 a) { ESP_QUADS(f32x16, abs(a.q[i])); }
ESP_OUT_OF_LINE f32x16 sqrt(f32x16 a) {
  float x[16];
  store(x, a);
  ESP_LANES { x[i] = __builtin_sqrtf(x[i]); }
  return load(x);
}
// Adding 2^23 rounds what is below it to an integer; the rest is one already, or a NaN that becomes quiet.
ESP_INLINE f32x4 rint(f32x4 a) {
  const f32x4 integers = quad_of(0x1p23f), magnitude = abs(a);
  const i32x4 sign = (i32x4)a & quad_of(INT32_MIN);
  const f32x4 rounded = (f32x4)((i32x4)((magnitude + integers) - integers) | sign);
  return choose(magnitude < integers, rounded, a + quad_of(0.0f));
}
ESP_INLINE f32x16 rint(f32x16 a) { ESP_QUADS(f32x16, rint(a.q[i])); }

ESP_INLINE mask16 operator<(f32x16 a, f32x16 b) { ESP_QUADS(mask16, a.q[i] < b.q[i]); }
ESP_INLINE mask16 operator<=(f32x16 a, f32x16 b) { ESP_QUADS(mask16, a.q[i] <= b.q[i]); }
ESP_INLINE mask16 operator==(f32x16 a, f32x16 b) { ESP_QUADS(mask16, a.q[i] == b.q[i]); }
ESP_INLINE mask16 is_nan(f32x16 a) { ESP_QUADS(mask16, a.q[i] != a.q[i]); }

// Through unsigned: sums of integers wrap.
ESP_INLINE i32x16 operator+(i32x16 a, i32x16 b) { ESP_QUADS(i32x16, (i32x4)((u32x4)a.q[i] + (u32x4)b.q[i])); }
ESP_INLINE i32x16 operator-(i32x16 a, i32x16 b) { ESP_QUADS(i32x16, (i32x4)((u32x4)a.q[i] - (u32x4)b.q[i])); }
ESP_INLINE i32x16 operator&(i32x16 a, i32x16 b) { ESP_QUADS(i32x16, a.q[i] & b.q[i]); }
ESP_INLINE i32x16 operator|(i32x16 a, i32x16 b) { ESP_QUADS(i32x16, a.q[i] | b.q[i]); }
template <int n>
ESP_INLINE i32x16 shift_left(i32x16 a) {
  ESP_QUADS(i32x16, (i32x4)((u32x4)a.q[i] << n));
}
template <int n>
ESP_INLINE i32x16 shift_right_logical(i32x16 a) {
  ESP_QUADS(i32x16, (i32x4)((u32x4)a.q[i] >> n));
}
ESP_INLINE i32x16 min(i32x16 a, i32x16 b) { ESP_QUADS(i32x16, choose(a.q[i] < b.q[i], a.q[i], b.q[i])); }
ESP_INLINE i32x16 max(i32x16 a, i32x16 b) { ESP_QUADS(i32x16, choose(a.q[i] > b.q[i], a.q[i], b.q[i])); }
ESP_INLINE mask16 operator==(i32x16 a, i32x16 b) { ESP_QUADS(mask16, a.q[i] == b.q[i]); }
ESP_INLINE mask16 operator<(i32x16 a, i32x16 b) { ESP_QUADS(mask16, a.q[i] < b.q[i]); }
ESP_INLINE mask16 less_unsigned(i32x16 a, i32x16 b) { ESP_QUADS(mask16, (i32x4)((u32x4)a.q[i] < (u32x4)b.q[i])); }
ESP_INLINE mask16 less_equal_unsigned(i32x16 a, i32x16 b) {
  ESP_QUADS(mask16, (i32x4)((u32x4)a.q[i] <= (u32x4)b.q[i]));
}

ESP_INLINE i32x16 bits_of(f32x16 a) { ESP_QUADS(i32x16, (i32x4)a.q[i]); }
ESP_INLINE f32x16 float_of_bits(i32x16 a) { ESP_QUADS(f32x16, (f32x4)a.q[i]); }
ESP_INLINE i32x4 to_int(f32x4 a) {
  const i32x4 fits = (a >= quad_of(-0x1p31f)) & (a < quad_of(0x1p31f));
  const f32x4 integer = choose(fits, rint(a), quad_of(0.0f));
  return choose(fits, __builtin_convertvector(integer, i32x4), quad_of(INT32_MIN));
}
ESP_INLINE i32x16 to_int(f32x16 a) { ESP_QUADS(i32x16, to_int(a.q[i])); }  // half to even; out of range: INT32_MIN
ESP_INLINE f32x16 to_float(i32x16 a) { ESP_QUADS(f32x16, __builtin_convertvector(a.q[i], f32x4)); }

// ---- elements of 8 and 16 bits

template <class Lane>
ESP_OUT_OF_LINE i32x16 load_widened(const Lane* p) {
  int32_t x[16];
  ESP_LANES { x[i] = p[i]; }
  return load(x);
}
template <class Lane>
ESP_OUT_OF_LINE void store_narrowed(Lane* p, i32x16 a) {
  int32_t x[16];
  store(x, a);
  ESP_LANES { p[i] = static_cast<Lane>(x[i]); }
}
ESP_INLINE i32x16 load_bytes(const int8_t* p) { return load_widened(p); }
ESP_INLINE i32x16 load_bytes(const uint8_t* p) { return load_widened(p); }
// The low byte of each lane.
ESP_INLINE void store_bytes(int8_t* p, i32x16 a) { store_narrowed(p, a); }

ESP_INLINE f32x16 load_bf16(const uint16_t* p) { return float_of_bits(shift_left<16>(load_widened(p))); }
ESP_INLINE u32x4 f32_to_bf16(f32x4 x) {
  const u32x4 u = (u32x4)x, high = u >> 16;
  const u32x4 quiet = high | quad_of(0x40u);  // as the vector variants do
  return choose(x != x, quiet, (u + quad_of(0x7fffu) + (high & quad_of(1u))) >> 16);
}
ESP_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const auto halves = [&]() __attribute__((always_inline)) { ESP_QUADS(i32x16, (i32x4)f32_to_bf16(a.q[i])); };
  store_narrowed(p, halves());
}
ESP_INLINE f32x4 f16_to_f32(u32x4 h) {
  const u32x4 sign = (h & quad_of(0x8000u)) << 16, magnitude = h & quad_of(0x7fffu), fraction = h & quad_of(0x3ffu);
  const u32x4 special = quad_of(0x7f800000u) | fraction << 13 |
                        choose((i32x4)(fraction != quad_of(0u)), quad_of(0x400000u), quad_of(0u));
  // The exponent is 112 too small: a scaling by 2^112, exact for subnormals too.
  const u32x4 finite = (u32x4)((f32x4)(magnitude << 13) * quad_of(0x1p112f));
  return (f32x4)(sign | choose((i32x4)(magnitude >= quad_of(0x7c00u)), special, finite));
}
ESP_OUT_OF_LINE f32x16 load_f16(const uint16_t* p) {
  const i32x16 halves = load_widened(p);
  ESP_QUADS(f32x16, f16_to_f32((u32x4)halves.q[i]));
}
ESP_INLINE u32x4 f32_to_f16(f32x4 x) {
  const u32x4 u = (u32x4)x, magnitude = u & quad_of(0x7fffffffu), sign = u >> 16 & quad_of(0x8000u);
  const u32x4 quiet = quad_of(0x7e00u) | (magnitude >> 13 & quad_of(0x3ffu));
  const u32x4 rounded = magnitude + quad_of(0xfffu) + (magnitude >> 13 & quad_of(1u));
  u32x4 half = (rounded >> 13) - quad_of(112u << 10);
  // Below 2^-14, subnormal: adding 0.5 aligns the last place of the sum with 2^-24, the unit of subnormals.
  const i32x4 small = (i32x4)(magnitude < quad_of(0x38800000u));
  half = choose(small, (u32x4)((f32x4)magnitude + quad_of(0.5f)) - quad_of(0x3f000000u), half);
  half = choose((i32x4)(magnitude >= quad_of(0x477ff000u)), quad_of(0x7c00u), half);  // rounds to 2^16 or beyond: infinity
  return sign | choose((i32x4)(magnitude > quad_of(0x7f800000u)), quiet, half);
}
ESP_OUT_OF_LINE void store_f16(uint16_t* p, f32x16 a) {
  const auto halves = [&]() __attribute__((always_inline)) { ESP_QUADS(i32x16, (i32x4)f32_to_f16(a.q[i])); };
  store_narrowed(p, halves());
}

// ---- masks

ESP_INLINE i32x4 lane_bits(int quad) { return i32x4{1, 2, 4, 8} << (4 * quad); }
ESP_INLINE mask16 mask_of(uint16_t bits) {
  ESP_QUADS(mask16, (quad_of(static_cast<int32_t>(bits)) & lane_bits(i)) != quad_of(0));
}
ESP_INLINE mask16 first_lanes(int64_t n) { return mask_of(static_cast<uint16_t>((1u << n) - 1)); }
ESP_INLINE uint16_t bits_of(mask16 m) {
  const i32x4 any = (m.q[0] & lane_bits(0)) | (m.q[1] & lane_bits(1)) | (m.q[2] & lane_bits(2)) | (m.q[3] & lane_bits(3));
  return static_cast<uint16_t>(any[0] | any[1] | any[2] | any[3]);
}
ESP_INLINE mask16 operator&(mask16 a, mask16 b) { ESP_QUADS(mask16, a.q[i] & b.q[i]); }
ESP_INLINE mask16 operator|(mask16 a, mask16 b) { ESP_QUADS(mask16, a.q[i] | b.q[i]); }
ESP_INLINE mask16 operator~(mask16 a) { ESP_QUADS(mask16, ~a.q[i]); }
ESP_INLINE int count(mask16 m) { return __builtin_popcount(bits_of(m)); }
ESP_INLINE bool any(mask16 m) { return bits_of(m) != 0; }
ESP_INLINE f32x16 keep(mask16 m, f32x16 a) { ESP_QUADS(f32x16, (f32x4)((i32x4)a.q[i] & m.q[i])); }  // else +0
ESP_INLINE f32x16 select(mask16 m, f32x16 yes, f32x16 no) { ESP_QUADS(f32x16, choose(m.q[i], yes.q[i], no.q[i])); }
ESP_INLINE i32x16 select(mask16 m, i32x16 yes, i32x16 no) { ESP_QUADS(i32x16, choose(m.q[i], yes.q[i], no.q[i])); }
// One more in each chosen lane.
ESP_INLINE i32x16 tally(i32x16 counts, mask16 m) { ESP_QUADS(i32x16, counts.q[i] - m.q[i]); }
// Lane i is lane from[i] of a, 0 <= from[i] < 16.
ESP_OUT_OF_LINE i32x16 permute(i32x16 a, i32x16 from) {
  int32_t x[16], lane[16], y[16];
  store(x, a);
  store(lane, from);
  ESP_LANES { y[i] = x[lane[i]]; }
  return load(y);
}
// Copies 16 elements of 16 bits, 0 for those not chosen.
ESP_OUT_OF_LINE void copy_kept(uint16_t* out, const uint16_t* in, mask16 m) {
  const uint16_t bits = bits_of(m);
  ESP_LANES { out[i] = (bits >> i & 1) != 0 ? in[i] : 0; }
}
ESP_OUT_OF_LINE void compress_store(int32_t* p, mask16 m, i32x16 a) {
  int32_t x[16];
  store(x, a);
  const uint16_t bits = bits_of(m);
  ESP_LANES {
    if ((bits >> i & 1) != 0) *p++ = x[i];
  }
}

// Lane j of vector i becomes lane i of vector j.
ESP_OUT_OF_LINE void transpose(f32x16 (&rows)[16]) {
  float x[16][16];
  ESP_LANES { store(x[i], rows[i]); }
  ESP_LANES {
    for (int j = 0; j < i; j++) {
      const float swapped = x[i][j];
      x[i][j] = x[j][i];
      x[j][i] = swapped;
    }
  }
  ESP_LANES { rows[i] = load(x[i]); }
}

// ---- 8 lanes of double, for sums that need them

struct f64x8 {
  double v[8];
};
#define ESP_MAP_F64(expression)                             \
  f64x8 r;                                                  \
  for (int i = 0; i < 8; i++) { r.v[i] = (expression); }    \
  return r
ESP_INLINE f64x8 zero_f64() { ESP_MAP_F64(0.0); }
ESP_OUT_OF_LINE f64x8 low_f64(f32x16 a) {
  float x[16];
  store(x, a);
  ESP_MAP_F64(static_cast<double>(x[i]));
}
ESP_OUT_OF_LINE f64x8 high_f64(f32x16 a) {
  float x[16];
  store(x, a);
  ESP_MAP_F64(static_cast<double>(x[i + 8]));
}
ESP_INLINE f64x8 operator+(f64x8 a, f64x8 b) { ESP_MAP_F64(a.v[i] + b.v[i]); }
ESP_INLINE f64x8 operator*(f64x8 a, f64x8 b) { ESP_MAP_F64(a.v[i] * b.v[i]); }
ESP_OUT_OF_LINE f64x8 fma(f64x8 a, f64x8 b, f64x8 c) { ESP_MAP_F64(__builtin_fma(a.v[i], b.v[i], c.v[i])); }
ESP_INLINE void store(double* p, f64x8 a) { __builtin_memcpy(p, a.v, sizeof a.v); }

#define ESP_FOLD(Lane, count, vector, combined)         \
  Lane x[count];                                        \
  store(x, vector);                                     \
  for (int half = count / 2; half > 0; half /= 2) {     \
    for (int i = 0; i < half; i++) {                    \
      const Lane a = x[i], b = x[i + half];             \
      x[i] = (combined);                                \
    }                                                   \
  }                                                     \
  return x[0]
ESP_OUT_OF_LINE float reduce_add(f32x16 v) { ESP_FOLD(float, 16, v, a + b); }
ESP_OUT_OF_LINE float reduce_max(f32x16 v) { ESP_FOLD(float, 16, v, a > b ? a : b); }
ESP_OUT_OF_LINE float reduce_min(f32x16 v) { ESP_FOLD(float, 16, v, a < b ? a : b); }
ESP_OUT_OF_LINE int32_t reduce_max(i32x16 v) { ESP_FOLD(int32_t, 16, v, a > b ? a : b); }
ESP_OUT_OF_LINE double reduce_add(f64x8 v) { ESP_FOLD(double, 8, v, a + b); }

#undef ESP_FOLD
#undef ESP_LANES
#undef ESP_MAP_F64
#undef ESP_OUT_OF_LINE
#undef ESP_QUADS

}  // namespace
