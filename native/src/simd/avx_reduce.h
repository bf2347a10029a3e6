// Across the lanes of 256-bit registers in the tree of simd.h: 4, 2, 1 apart, the lower lane first.
#pragma once
#include <immintrin.h>

namespace {

#define ESP_FOLD(name, operation)                                                          \
  ESP_INLINE float name(__m256 v) {                                                        \
    const __m128 four = operation(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); \
    const __m128 two = operation(four, _mm_movehl_ps(four, four));                         \
    return _mm_cvtss_f32(operation(two, _mm_shuffle_ps(two, two, 1)));                     \
  }
ESP_FOLD(fold_add, _mm_add_ps)
ESP_FOLD(fold_max, _mm_max_ps)
ESP_FOLD(fold_min, _mm_min_ps)
#undef ESP_FOLD

ESP_INLINE int32_t fold_max(__m256i v) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}
ESP_INLINE double fold_add(__m256d v) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

}  // namespace
