// One AVX-512 register (F, BW, VL, DQ).
#pragma once
#include <immintrin.h>

#include "simd/avx_reduce.h"

namespace {

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};
struct mask16 {
  __mmask16 v;
};

ESP_INLINE f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
ESP_INLINE i32x16 set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
ESP_INLINE i32x16 lane_index() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
ESP_INLINE mask16 first_lanes(int64_t n) { return {static_cast<__mmask16>((1u << n) - 1)}; }
ESP_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
ESP_INLINE i32x16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
ESP_INLINE f32x16 load_n(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n).v, p)}; }
ESP_INLINE i32x16 load_n(const int32_t* p, int64_t n) { return {_mm512_maskz_loadu_epi32(first_lanes(n).v, p)}; }
ESP_INLINE void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
ESP_INLINE void store(int32_t* p, i32x16 a) { _mm512_storeu_si512(p, a.v); }
ESP_INLINE void store_n(float* p, f32x16 a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n).v, a.v); }
ESP_INLINE void store_n(int32_t* p, i32x16 a, int64_t n) { _mm512_mask_storeu_epi32(p, first_lanes(n).v, a.v); }
ESP_INLINE void stream(float* p, f32x16 a) { _mm512_stream_ps(p, a.v); }
ESP_INLINE void fence() { _mm_sfence(); }

ESP_INLINE f32x16 load_bf16(const uint16_t* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
ESP_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
}
ESP_INLINE f32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
ESP_INLINE void store_f16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

ESP_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
ESP_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
ESP_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
ESP_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
ESP_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a*b + c
ESP_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a*b
ESP_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
ESP_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
ESP_INLINE f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
ESP_INLINE f32x16 sqrt(f32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
ESP_INLINE f32x16 rint(f32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

ESP_INLINE __m256 low_half(f32x16 a) { return _mm512_castps512_ps256(a.v); }
ESP_INLINE __m256 high_half(f32x16 a) { return _mm512_extractf32x8_ps(a.v, 1); }
ESP_INLINE float reduce_add(f32x16 a) { return fold_add(_mm256_add_ps(low_half(a), high_half(a))); }
ESP_INLINE float reduce_max(f32x16 a) { return fold_max(_mm256_max_ps(low_half(a), high_half(a))); }
ESP_INLINE float reduce_min(f32x16 a) { return fold_min(_mm256_min_ps(low_half(a), high_half(a))); }
ESP_INLINE int32_t reduce_max(i32x16 a) {
  return fold_max(_mm256_max_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti32x8_epi32(a.v, 1)));
}

ESP_INLINE mask16 operator<(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
ESP_INLINE mask16 operator<=(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
ESP_INLINE mask16 operator==(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
ESP_INLINE mask16 is_nan(f32x16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }

ESP_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
ESP_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
ESP_INLINE i32x16 operator&(i32x16 a, i32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
ESP_INLINE i32x16 operator|(i32x16 a, i32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
ESP_INLINE i32x16 shift_left(i32x16 a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
ESP_INLINE i32x16 shift_right_logical(i32x16 a) {
  return {_mm512_srli_epi32(a.v, n)};
}
ESP_INLINE i32x16 min(i32x16 a, i32x16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
ESP_INLINE i32x16 max(i32x16 a, i32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
ESP_INLINE mask16 operator<(i32x16 a, i32x16 b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
ESP_INLINE mask16 less_unsigned(i32x16 a, i32x16 b) { return {_mm512_cmplt_epu32_mask(a.v, b.v)}; }
ESP_INLINE mask16 less_equal_unsigned(i32x16 a, i32x16 b) { return {_mm512_cmple_epu32_mask(a.v, b.v)}; }
ESP_INLINE mask16 operator==(i32x16 a, i32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }

ESP_INLINE i32x16 bits_of(f32x16 a) { return {_mm512_castps_si512(a.v)}; }
ESP_INLINE f32x16 float_of_bits(i32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
ESP_INLINE i32x16 to_int(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // half to even; out of range: INT32_MIN
ESP_INLINE f32x16 to_float(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// The low byte of each lane.
ESP_INLINE void store_bytes(int8_t* p, i32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
ESP_INLINE i32x16 load_bytes(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
ESP_INLINE i32x16 load_bytes(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

ESP_INLINE mask16 mask_of(uint16_t bits) { return {static_cast<__mmask16>(bits)}; }
ESP_INLINE uint16_t bits_of(mask16 m) { return static_cast<uint16_t>(m.v); }
ESP_INLINE mask16 operator&(mask16 a, mask16 b) { return {_kand_mask16(a.v, b.v)}; }
ESP_INLINE mask16 operator|(mask16 a, mask16 b) { return {_kor_mask16(a.v, b.v)}; }
ESP_INLINE mask16 operator~(mask16 a) { return {_knot_mask16(a.v)}; }
ESP_INLINE int count(mask16 m) { return __builtin_popcount(m.v); }
ESP_INLINE bool any(mask16 m) { return m.v != 0; }
ESP_INLINE f32x16 keep(mask16 m, f32x16 a) { return {_mm512_maskz_mov_ps(m.v, a.v)}; }  // else +0
ESP_INLINE f32x16 select(mask16 m, f32x16 yes, f32x16 no) { return {_mm512_mask_mov_ps(no.v, m.v, yes.v)}; }
ESP_INLINE i32x16 select(mask16 m, i32x16 yes, i32x16 no) { return {_mm512_mask_mov_epi32(no.v, m.v, yes.v)}; }
// One more in each chosen lane.
ESP_INLINE i32x16 tally(i32x16 counts, mask16 m) {
  return {_mm512_mask_add_epi32(counts.v, m.v, counts.v, _mm512_set1_epi32(1))};
}
// Lane i is lane from[i] of a, 0 <= from[i] < 16.
ESP_INLINE i32x16 permute(i32x16 a, i32x16 from) { return {_mm512_permutexvar_epi32(from.v, a.v)}; }
// Copies 16 elements of 16 bits, 0 for those not chosen.
ESP_INLINE void copy_kept(uint16_t* out, const uint16_t* in, mask16 m) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_maskz_loadu_epi16(m.v, in));
}
// In a register first: the store form is microcoded on some processors.
ESP_INLINE void compress_store(int32_t* p, mask16 m, i32x16 a) {
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(m.v, a.v));
}

// Lane j of vector i becomes lane i of vector j.
ESP_INLINE void transpose(f32x16 (&rows)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  // b[4 * i + j], quarter k: lanes 4k + j of rows 4i .. 4i + 3.
  for (int j = 0; j < 4; j++) {
    const __m512 low = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88), high = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
    rows[j].v = _mm512_shuffle_f32x4(low, high, 0x88);
    rows[j + 8].v = _mm512_shuffle_f32x4(low, high, 0xdd);
    rows[j + 4].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[j + 12].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

// 8 lanes of double, for sums that need them.
struct f64x8 {
  __m512d v;
};
ESP_INLINE f64x8 zero_f64() { return {_mm512_setzero_pd()}; }
ESP_INLINE f64x8 low_f64(f32x16 a) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v))}; }
ESP_INLINE f64x8 high_f64(f32x16 a) { return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))}; }
ESP_INLINE f64x8 operator+(f64x8 a, f64x8 b) { return {_mm512_add_pd(a.v, b.v)}; }
ESP_INLINE f64x8 operator*(f64x8 a, f64x8 b) { return {_mm512_mul_pd(a.v, b.v)}; }
ESP_INLINE f64x8 fma(f64x8 a, f64x8 b, f64x8 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
ESP_INLINE void store(double* p, f64x8 a) { _mm512_storeu_pd(p, a.v); }
ESP_INLINE double reduce_add(f64x8 a) {
  return fold_add(_mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1)));
}

}  // namespace
