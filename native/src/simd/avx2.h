// Two AVX2 registers (with FMA, F16C, BMI).
#pragma once
#include <immintrin.h>

#include "simd/avx_reduce.h"

namespace {

// A type of two registers. It is copied member by member: GCC 12 copies a plain struct of two through the stack in quarters,
// on whose stores the load of a half then waits.
#define ESP_PAIR(Type, Register)                                        \
  struct Type {                                                         \
    Register lo, hi;                                                    \
    Type() = default;                                                   \
    ESP_MEMBER Type(Register low, Register high) : lo(low), hi(high) {} \
    ESP_MEMBER Type(const Type& a) : lo(a.lo), hi(a.hi) {}              \
    ESP_MEMBER Type& operator=(const Type& a) {                         \
      lo = a.lo;                                                        \
      hi = a.hi;                                                        \
      return *this;                                                     \
    }                                                                   \
  }
ESP_PAIR(f32x16, __m256);
ESP_PAIR(i32x16, __m256i);
ESP_PAIR(mask16, __m256i);  // all bits of a lane set or none
ESP_PAIR(f64x8, __m256d);   // for sums that need them

ESP_INLINE f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ESP_INLINE i32x16 set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
ESP_INLINE i32x16 lane_index() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
ESP_INLINE mask16 first_lanes(int64_t n) {
  const __m256i count = _mm256_set1_epi32(static_cast<int>(n));
  const i32x16 i = lane_index();
  return {_mm256_cmpgt_epi32(count, i.lo), _mm256_cmpgt_epi32(count, i.hi)};
}
ESP_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ESP_INLINE i32x16 load(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
ESP_INLINE f32x16 load_n(const float* p, int64_t n) {
  const mask16 m = first_lanes(n);
  return {_mm256_maskload_ps(p, m.lo), _mm256_maskload_ps(p + 8, m.hi)};
}
ESP_INLINE i32x16 load_n(const int32_t* p, int64_t n) {
  const mask16 m = first_lanes(n);
  return {_mm256_maskload_epi32(p, m.lo), _mm256_maskload_epi32(p + 8, m.hi)};
}
ESP_INLINE void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
ESP_INLINE void store(int32_t* p, i32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
ESP_INLINE void store_n(float* p, f32x16 a, int64_t n) {
  const mask16 m = first_lanes(n);
  _mm256_maskstore_ps(p, m.lo, a.lo);
  _mm256_maskstore_ps(p + 8, m.hi, a.hi);
}
ESP_INLINE void store_n(int32_t* p, i32x16 a, int64_t n) {
  const mask16 m = first_lanes(n);
  _mm256_maskstore_epi32(p, m.lo, a.lo);
  _mm256_maskstore_epi32(p + 8, m.hi, a.hi);
}
ESP_INLINE void stream(float* p, f32x16 a) {
  _mm256_stream_ps(p, a.lo);
  _mm256_stream_ps(p + 8, a.hi);
}
ESP_INLINE void fence() { _mm_sfence(); }

ESP_INLINE __m256 bf16_to_f32(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
ESP_INLINE f32x16 load_bf16(const uint16_t* p) {
  return {bf16_to_f32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          bf16_to_f32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
ESP_INLINE __m256i f32_to_bf16(__m256 a) {
  const __m256i u = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
ESP_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  // packus interleaves the 128-bit halves; permute puts them back in order.
  const __m256i packed = _mm256_packus_epi32(f32_to_bf16(a.lo), f32_to_bf16(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
ESP_INLINE f32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
ESP_INLINE void store_f16(uint16_t* p, f32x16 a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, nearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, nearest));
}

ESP_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
ESP_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
ESP_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
ESP_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
ESP_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {  // a*b + c
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
ESP_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) {  // c - a*b
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
ESP_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
ESP_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
ESP_INLINE f32x16 abs(f32x16 a) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.lo, m), _mm256_and_ps(a.hi, m)};
}
ESP_INLINE f32x16 sqrt(f32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
ESP_INLINE f32x16 rint(f32x16 a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, nearest), _mm256_round_ps(a.hi, nearest)};
}

ESP_INLINE float reduce_add(f32x16 a) { return fold_add(_mm256_add_ps(a.lo, a.hi)); }
ESP_INLINE float reduce_max(f32x16 a) { return fold_max(_mm256_max_ps(a.lo, a.hi)); }
ESP_INLINE float reduce_min(f32x16 a) { return fold_min(_mm256_min_ps(a.lo, a.hi)); }
ESP_INLINE int32_t reduce_max(i32x16 a) { return fold_max(_mm256_max_epi32(a.lo, a.hi)); }

template <int predicate>
ESP_INLINE mask16 compare(f32x16 a, f32x16 b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.lo, b.lo, predicate)),
          _mm256_castps_si256(_mm256_cmp_ps(a.hi, b.hi, predicate))};
}
ESP_INLINE mask16 operator<(f32x16 a, f32x16 b) { return compare<_CMP_LT_OQ>(a, b); }
ESP_INLINE mask16 operator<=(f32x16 a, f32x16 b) { return compare<_CMP_LE_OQ>(a, b); }
ESP_INLINE mask16 operator==(f32x16 a, f32x16 b) { return compare<_CMP_EQ_OQ>(a, b); }
ESP_INLINE mask16 is_nan(f32x16 a) { return compare<_CMP_UNORD_Q>(a, a); }

ESP_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
ESP_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
ESP_INLINE i32x16 operator&(i32x16 a, i32x16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
ESP_INLINE i32x16 operator|(i32x16 a, i32x16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int n>
ESP_INLINE i32x16 shift_left(i32x16 a) {
  return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
template <int n>
ESP_INLINE i32x16 shift_right_logical(i32x16 a) {
  return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)};
}
ESP_INLINE i32x16 min(i32x16 a, i32x16 b) { return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)}; }
ESP_INLINE i32x16 max(i32x16 a, i32x16 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
ESP_INLINE mask16 operator==(i32x16 a, i32x16 b) {
  return {_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi)};
}
ESP_INLINE mask16 operator<(i32x16 a, i32x16 b) {
  return {_mm256_cmpgt_epi32(b.lo, a.lo), _mm256_cmpgt_epi32(b.hi, a.hi)};
}
ESP_INLINE mask16 less_equal_unsigned(i32x16 a, i32x16 b) {
  return {_mm256_cmpeq_epi32(_mm256_min_epu32(a.lo, b.lo), a.lo), _mm256_cmpeq_epi32(_mm256_min_epu32(a.hi, b.hi), a.hi)};
}
ESP_INLINE mask16 less_unsigned(i32x16 a, i32x16 b) {
  const __m256i flip = _mm256_set1_epi32(INT32_MIN);
  return {_mm256_cmpgt_epi32(_mm256_xor_si256(b.lo, flip), _mm256_xor_si256(a.lo, flip)),
          _mm256_cmpgt_epi32(_mm256_xor_si256(b.hi, flip), _mm256_xor_si256(a.hi, flip))};
}

ESP_INLINE i32x16 bits_of(f32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
ESP_INLINE f32x16 float_of_bits(i32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
ESP_INLINE i32x16 to_int(f32x16 a) {  // half to even; out of range: INT32_MIN
  return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
ESP_INLINE f32x16 to_float(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// The low byte of each lane.
ESP_INLINE void store_bytes(int8_t* p, i32x16 a) {
  const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8,
                                        12, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i lo = _mm256_shuffle_epi8(a.lo, pick), hi = _mm256_shuffle_epi8(a.hi, pick);
  const __m128i low = _mm_or_si128(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
  const __m128i high = _mm_or_si128(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi64(low, high));
}
ESP_INLINE i32x16 load_bytes(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}
ESP_INLINE i32x16 load_bytes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}

ESP_INLINE mask16 mask_of(uint16_t bits) {
  const __m256i pick = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i lo = _mm256_and_si256(_mm256_set1_epi32(bits), pick);
  const __m256i hi = _mm256_and_si256(_mm256_set1_epi32(bits >> 8), pick);
  return {_mm256_cmpeq_epi32(lo, pick), _mm256_cmpeq_epi32(hi, pick)};
}
ESP_INLINE uint16_t bits_of(mask16 m) {
  const int lo = _mm256_movemask_ps(_mm256_castsi256_ps(m.lo)), hi = _mm256_movemask_ps(_mm256_castsi256_ps(m.hi));
  return static_cast<uint16_t>(lo | hi << 8);
}
ESP_INLINE mask16 operator&(mask16 a, mask16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
ESP_INLINE mask16 operator|(mask16 a, mask16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
ESP_INLINE mask16 operator~(mask16 a) {
  const __m256i ones = _mm256_set1_epi32(-1);
  return {_mm256_xor_si256(a.lo, ones), _mm256_xor_si256(a.hi, ones)};
}
ESP_INLINE int count(mask16 m) { return __builtin_popcount(bits_of(m)); }
ESP_INLINE bool any(mask16 m) { return bits_of(m) != 0; }
ESP_INLINE f32x16 keep(mask16 m, f32x16 a) {  // else +0
  return {_mm256_and_ps(a.lo, _mm256_castsi256_ps(m.lo)), _mm256_and_ps(a.hi, _mm256_castsi256_ps(m.hi))};
}
ESP_INLINE f32x16 select(mask16 m, f32x16 yes, f32x16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_castsi256_ps(m.lo)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_castsi256_ps(m.hi))};
}
ESP_INLINE i32x16 select(mask16 m, i32x16 yes, i32x16 no) {
  return {_mm256_blendv_epi8(no.lo, yes.lo, m.lo), _mm256_blendv_epi8(no.hi, yes.hi, m.hi)};
}
// One more in each chosen lane.
ESP_INLINE i32x16 tally(i32x16 counts, mask16 m) {
  return {_mm256_sub_epi32(counts.lo, m.lo), _mm256_sub_epi32(counts.hi, m.hi)};
}
ESP_INLINE __m256i permute(i32x16 a, __m256i from) {
  const __m256i high = _mm256_cmpgt_epi32(from, _mm256_set1_epi32(7));
  return _mm256_blendv_epi8(_mm256_permutevar8x32_epi32(a.lo, from), _mm256_permutevar8x32_epi32(a.hi, from), high);
}
// Lane i is lane from[i] of a, 0 <= from[i] < 16.
ESP_INLINE i32x16 permute(i32x16 a, i32x16 from) { return {permute(a, from.lo), permute(a, from.hi)}; }
// Copies 16 elements of 16 bits, 0 for those not chosen.
ESP_INLINE void copy_kept(uint16_t* out, const uint16_t* in, mask16 m) {
  // packs interleaves the 128-bit halves; permute puts them back in order.
  const __m256i lanes = _mm256_permute4x64_epi64(_mm256_packs_epi32(m.lo, m.hi), 0xd8);
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_and_si256(x, lanes));
}
// Moves the chosen lanes of 8 to the front: their numbers, packed as bytes by pext, drive a permute.
ESP_INLINE __m256i compress8(__m256i a, unsigned bits) {
  const uint64_t spread = _pdep_u64(bits, 0x0101010101010101ull) * 0xff;
  const uint64_t order = _pext_u64(0x0706050403020100ull, spread);
  return _mm256_permutevar8x32_epi32(a, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(order))));
}
ESP_INLINE void compress_store(int32_t* p, mask16 m, i32x16 a) {
  const unsigned bits = bits_of(m), lo = bits & 0xff;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), compress8(a.lo, lo));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + __builtin_popcount(lo)), compress8(a.hi, bits >> 8));
}

// Lane j of vector i becomes lane i of vector j: four blocks of 8 x 8, the outer two swapped.
ESP_INLINE void transpose8(__m256 (&r)[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}
ESP_INLINE void transpose(f32x16 (&rows)[16]) {
  __m256 block[4][8];  // left top, right top, left bottom, right bottom
  for (int i = 0; i < 8; i++) {
    block[0][i] = rows[i].lo;
    block[1][i] = rows[i].hi;
    block[2][i] = rows[i + 8].lo;
    block[3][i] = rows[i + 8].hi;
  }
  for (auto& b : block) transpose8(b);
  for (int i = 0; i < 8; i++) {
    rows[i] = {block[0][i], block[2][i]};
    rows[i + 8] = {block[1][i], block[3][i]};
  }
}

ESP_INLINE f64x8 widen(__m256 a) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))};
}
ESP_INLINE f64x8 zero_f64() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
ESP_INLINE f64x8 low_f64(f32x16 a) { return widen(a.lo); }
ESP_INLINE f64x8 high_f64(f32x16 a) { return widen(a.hi); }
ESP_INLINE f64x8 operator+(f64x8 a, f64x8 b) { return {_mm256_add_pd(a.lo, b.lo), _mm256_add_pd(a.hi, b.hi)}; }
ESP_INLINE f64x8 operator*(f64x8 a, f64x8 b) { return {_mm256_mul_pd(a.lo, b.lo), _mm256_mul_pd(a.hi, b.hi)}; }
ESP_INLINE f64x8 fma(f64x8 a, f64x8 b, f64x8 c) {
  return {_mm256_fmadd_pd(a.lo, b.lo, c.lo), _mm256_fmadd_pd(a.hi, b.hi, c.hi)};
}
ESP_INLINE void store(double* p, f64x8 a) {
  _mm256_storeu_pd(p, a.lo);
  _mm256_storeu_pd(p + 4, a.hi);
}
ESP_INLINE double reduce_add(f64x8 a) { return fold_add(_mm256_add_pd(a.lo, a.hi)); }

}  // namespace
