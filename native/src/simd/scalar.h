// Arrays of 16, in plain C++: the variant for every other processor, and the one that the others are compared with.
#pragma once

namespace {

struct f32x16 {
  float v[16];
};
struct i32x16 {
  int32_t v[16];
};
struct mask16 {
  uint16_t v;
};

#define ESP_LANES for (int i = 0; i < 16; i++)

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

#define ESP_MAP(Result, expression)     \
  Result r;                             \
  ESP_LANES { r.v[i] = (expression); }  \
  return r
#define ESP_TEST(expression)                                                               \
  mask16 r{0};                                                                             \
  ESP_LANES { r.v = static_cast<uint16_t>(r.v | ((expression) ? 1u : 0u) << i); } \
  return r

ESP_INLINE f32x16 set1(float x) { ESP_MAP(f32x16, x); }
ESP_INLINE i32x16 set1(int32_t x) { ESP_MAP(i32x16, x); }
ESP_INLINE i32x16 lane_index() { ESP_MAP(i32x16, i); }
ESP_INLINE f32x16 load(const float* p) { ESP_MAP(f32x16, p[i]); }
ESP_INLINE i32x16 load(const int32_t* p) { ESP_MAP(i32x16, p[i]); }
ESP_INLINE f32x16 load_n(const float* p, int64_t n) { ESP_MAP(f32x16, i < n ? p[i] : 0.0f); }
ESP_INLINE i32x16 load_n(const int32_t* p, int64_t n) { ESP_MAP(i32x16, i < n ? p[i] : 0); }
ESP_INLINE void store(float* p, f32x16 a) { __builtin_memcpy(p, a.v, sizeof a.v); }
ESP_INLINE void store(int32_t* p, i32x16 a) { __builtin_memcpy(p, a.v, sizeof a.v); }
ESP_INLINE void store_n(float* p, f32x16 a, int64_t n) { __builtin_memcpy(p, a.v, static_cast<size_t>(n) * 4); }
ESP_INLINE void store_n(int32_t* p, i32x16 a, int64_t n) { __builtin_memcpy(p, a.v, static_cast<size_t>(n) * 4); }
ESP_INLINE void stream(float* p, f32x16 a) { store(p, a); }
ESP_INLINE void fence() {}

ESP_INLINE f32x16 load_bf16(const uint16_t* p) { ESP_MAP(f32x16, float_of_bits(static_cast<uint32_t>(p[i]) << 16)); }
ESP_INLINE uint16_t f32_to_bf16(float x) {
  const uint32_t u = bits_of(x);
  if (x != x) return static_cast<uint16_t>(u >> 16 | 0x40);  // quiet, as the vector variants do
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
ESP_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  ESP_LANES { p[i] = f32_to_bf16(a.v[i]); }
}
ESP_INLINE float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000 | fraction << 13 | (fraction != 0 ? 0x400000 : 0));
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero or subnormal, exact
  return float_of_bits(sign | bits_of(magnitude));
}
ESP_INLINE f32x16 load_f16(const uint16_t* p) { ESP_MAP(f32x16, f16_to_f32(p[i])); }
ESP_INLINE uint16_t f32_to_f16(float x) {
  const uint32_t u = bits_of(x), magnitude = u & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 2^16 or beyond: infinity
  if (magnitude < 0x38800000) {                                              // below 2^-14: subnormal
    // Adding 0.5 aligns the last place of the sum with 2^-24, the unit of subnormals.
    const float sum = float_of_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of(sum) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}
ESP_INLINE void store_f16(uint16_t* p, f32x16 a) {
  ESP_LANES { p[i] = f32_to_f16(a.v[i]); }
}

ESP_INLINE f32x16 operator+(f32x16 a, f32x16 b) { ESP_MAP(f32x16, a.v[i] + b.v[i]); }
ESP_INLINE f32x16 operator-(f32x16 a, f32x16 b) { ESP_MAP(f32x16, a.v[i] - b.v[i]); }
ESP_INLINE f32x16 operator*(f32x16 a, f32x16 b) { ESP_MAP(f32x16, a.v[i] * b.v[i]); }
ESP_INLINE f32x16 operator/(f32x16 a, f32x16 b) { ESP_MAP(f32x16, a.v[i] / b.v[i]); }
ESP_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { ESP_MAP(f32x16, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
ESP_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) { ESP_MAP(f32x16, __builtin_fmaf(-a.v[i], b.v[i], c.v[i])); }
ESP_INLINE f32x16 min(f32x16 a, f32x16 b) { ESP_MAP(f32x16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
ESP_INLINE f32x16 max(f32x16 a, f32x16 b) { ESP_MAP(f32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
ESP_INLINE f32x16 abs(f32x16 a) { ESP_MAP(f32x16, __builtin_fabsf(a.v[i])); }
ESP_INLINE f32x16 sqrt(f32x16 a) { ESP_MAP(f32x16, __builtin_sqrtf(a.v[i])); }
ESP_INLINE f32x16 rint(f32x16 a) { ESP_MAP(f32x16, __builtin_rintf(a.v[i])); }

ESP_INLINE mask16 operator<(f32x16 a, f32x16 b) { ESP_TEST(a.v[i] < b.v[i]); }
ESP_INLINE mask16 operator<=(f32x16 a, f32x16 b) { ESP_TEST(a.v[i] <= b.v[i]); }
ESP_INLINE mask16 operator==(f32x16 a, f32x16 b) { ESP_TEST(a.v[i] == b.v[i]); }
ESP_INLINE mask16 is_nan(f32x16 a) { ESP_TEST(a.v[i] != a.v[i]); }

ESP_INLINE int32_t wrap(uint32_t u) { return static_cast<int32_t>(u); }
ESP_INLINE uint32_t unsign(int32_t s) { return static_cast<uint32_t>(s); }
ESP_INLINE i32x16 operator+(i32x16 a, i32x16 b) { ESP_MAP(i32x16, wrap(unsign(a.v[i]) + unsign(b.v[i]))); }
ESP_INLINE i32x16 operator-(i32x16 a, i32x16 b) { ESP_MAP(i32x16, wrap(unsign(a.v[i]) - unsign(b.v[i]))); }
ESP_INLINE i32x16 operator&(i32x16 a, i32x16 b) { ESP_MAP(i32x16, a.v[i] & b.v[i]); }
ESP_INLINE i32x16 operator|(i32x16 a, i32x16 b) { ESP_MAP(i32x16, a.v[i] | b.v[i]); }
template <int n>
ESP_INLINE i32x16 shift_left(i32x16 a) {
  ESP_MAP(i32x16, wrap(unsign(a.v[i]) << n));
}
template <int n>
ESP_INLINE i32x16 shift_right_logical(i32x16 a) {
  ESP_MAP(i32x16, wrap(unsign(a.v[i]) >> n));
}
ESP_INLINE i32x16 min(i32x16 a, i32x16 b) { ESP_MAP(i32x16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
ESP_INLINE i32x16 max(i32x16 a, i32x16 b) { ESP_MAP(i32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
ESP_INLINE mask16 operator==(i32x16 a, i32x16 b) { ESP_TEST(a.v[i] == b.v[i]); }
ESP_INLINE mask16 operator<(i32x16 a, i32x16 b) { ESP_TEST(a.v[i] < b.v[i]); }
ESP_INLINE mask16 less_unsigned(i32x16 a, i32x16 b) { ESP_TEST(unsign(a.v[i]) < unsign(b.v[i])); }
ESP_INLINE mask16 less_equal_unsigned(i32x16 a, i32x16 b) { ESP_TEST(unsign(a.v[i]) <= unsign(b.v[i])); }

ESP_INLINE i32x16 bits_of(f32x16 a) {
  i32x16 r;
  __builtin_memcpy(r.v, a.v, sizeof r.v);
  return r;
}
ESP_INLINE f32x16 float_of_bits(i32x16 a) {
  f32x16 r;
  __builtin_memcpy(r.v, a.v, sizeof r.v);
  return r;
}
ESP_INLINE i32x16 to_int(f32x16 a) {  // half to even; out of range: INT32_MIN
  ESP_MAP(i32x16, a.v[i] >= -0x1p31f && a.v[i] < 0x1p31f ? static_cast<int32_t>(__builtin_rintf(a.v[i])) : INT32_MIN);
}
ESP_INLINE f32x16 to_float(i32x16 a) { ESP_MAP(f32x16, static_cast<float>(a.v[i])); }
// The low byte of each lane.
ESP_INLINE void store_bytes(int8_t* p, i32x16 a) {
  ESP_LANES { p[i] = static_cast<int8_t>(a.v[i]); }
}
ESP_INLINE i32x16 load_bytes(const int8_t* p) { ESP_MAP(i32x16, p[i]); }
ESP_INLINE i32x16 load_bytes(const uint8_t* p) { ESP_MAP(i32x16, p[i]); }

ESP_INLINE mask16 mask_of(uint16_t bits) { return {bits}; }
ESP_INLINE uint16_t bits_of(mask16 m) { return m.v; }
ESP_INLINE mask16 operator&(mask16 a, mask16 b) { return {static_cast<uint16_t>(a.v & b.v)}; }
ESP_INLINE mask16 operator|(mask16 a, mask16 b) { return {static_cast<uint16_t>(a.v | b.v)}; }
ESP_INLINE mask16 operator~(mask16 a) { return {static_cast<uint16_t>(~a.v)}; }
ESP_INLINE int count(mask16 m) { return __builtin_popcount(m.v); }
ESP_INLINE bool any(mask16 m) { return m.v != 0; }
ESP_INLINE bool lane(mask16 m, int i) { return (m.v >> i & 1) != 0; }
ESP_INLINE f32x16 keep(mask16 m, f32x16 a) { ESP_MAP(f32x16, lane(m, i) ? a.v[i] : 0.0f); }  // else +0
ESP_INLINE f32x16 select(mask16 m, f32x16 yes, f32x16 no) { ESP_MAP(f32x16, lane(m, i) ? yes.v[i] : no.v[i]); }
ESP_INLINE i32x16 select(mask16 m, i32x16 yes, i32x16 no) { ESP_MAP(i32x16, lane(m, i) ? yes.v[i] : no.v[i]); }
// One more in each chosen lane.
ESP_INLINE i32x16 tally(i32x16 counts, mask16 m) { ESP_MAP(i32x16, counts.v[i] + (lane(m, i) ? 1 : 0)); }
// Lane i is lane from[i] of a, 0 <= from[i] < 16.
ESP_INLINE i32x16 permute(i32x16 a, i32x16 from) { ESP_MAP(i32x16, a.v[from.v[i]]); }
// Copies 16 elements of 16 bits, 0 for those not chosen.
ESP_INLINE void copy_kept(uint16_t* out, const uint16_t* in, mask16 m) {
  ESP_LANES { out[i] = lane(m, i) ? in[i] : 0; }
}
ESP_INLINE void compress_store(int32_t* p, mask16 m, i32x16 a) {
  ESP_LANES {
    if (lane(m, i)) *p++ = a.v[i];
  }
}

// Lane j of vector i becomes lane i of vector j.
ESP_INLINE_IN_REGISTERS void transpose(f32x16 (&rows)[16]) {
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < i; j++) {
      const float swapped = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = swapped;
    }
  }
}

// 8 lanes of double, for sums that need them.
struct f64x8 {
  double v[8];
};
#define ESP_MAP_F64(expression)                             \
  f64x8 r;                                                  \
  for (int i = 0; i < 8; i++) { r.v[i] = (expression); }    \
  return r
ESP_INLINE f64x8 zero_f64() { ESP_MAP_F64(0.0); }
ESP_INLINE f64x8 low_f64(f32x16 a) { ESP_MAP_F64(static_cast<double>(a.v[i])); }
ESP_INLINE f64x8 high_f64(f32x16 a) { ESP_MAP_F64(static_cast<double>(a.v[i + 8])); }
ESP_INLINE f64x8 operator+(f64x8 a, f64x8 b) { ESP_MAP_F64(a.v[i] + b.v[i]); }
ESP_INLINE f64x8 operator*(f64x8 a, f64x8 b) { ESP_MAP_F64(a.v[i] * b.v[i]); }
ESP_INLINE f64x8 fma(f64x8 a, f64x8 b, f64x8 c) { ESP_MAP_F64(__builtin_fma(a.v[i], b.v[i], c.v[i])); }
ESP_INLINE void store(double* p, f64x8 a) { __builtin_memcpy(p, a.v, sizeof a.v); }

#define ESP_FOLD(lanes, count, combined)                \
  for (int half = count / 2; half > 0; half /= 2) {     \
    for (int i = 0; i < half; i++) {                    \
      const auto a = lanes[i], b = lanes[i + half];     \
      lanes[i] = (combined);                            \
    }                                                   \
  }                                                     \
  return lanes[0]
ESP_INLINE float reduce_add(f32x16 x) { ESP_FOLD(x.v, 16, a + b); }
ESP_INLINE float reduce_max(f32x16 x) { ESP_FOLD(x.v, 16, a > b ? a : b); }
ESP_INLINE float reduce_min(f32x16 x) { ESP_FOLD(x.v, 16, a < b ? a : b); }
ESP_INLINE int32_t reduce_max(i32x16 x) { ESP_FOLD(x.v, 16, a > b ? a : b); }
ESP_INLINE double reduce_add(f64x8 x) { ESP_FOLD(x.v, 8, a + b); }

#undef ESP_FOLD
#undef ESP_MAP
#undef ESP_MAP_F64
#undef ESP_TEST
#undef ESP_LANES

}  // namespace
