// The vector types that kernels are written in: 16 lanes of F32 or I32 on every instruction set (one AVX-512 register, two
// AVX2 registers, four quads), so that lane-wise sums have the same order, and the same bits, everywhere.
//
//   f32x16, i32x16   values         mask16   one truth value a lane
//
// Rules of the types, the same on every instruction set:
//   min(a, b) is a < b ? a : b and max(a, b) is a > b ? a : b: a NaN in either gives b.
//   fma is one rounding; no operation flushes denormals.
//   load_n/store_n touch only the first n lanes (0 <= n <= 16); load_n fills the rest with zeros.
//   first_lanes is the mask of the first n lanes, 0 <= n <= 16.
//   stream needs 64-byte alignment and a fence() before another thread reads.
//   reduce_add, reduce_max and reduce_min go down a fixed tree: lanes 0..7 with 8..15, then 4, 2, 1 apart.
//   compress_store writes the chosen lanes in order and may write rubbish after them, up to 16 lanes in all.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "espalier/common.h"

// Of functions, and of members.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ESP_INLINE static inline  // instrumented wherever they are used they would take the compiler minutes
#define ESP_MEMBER inline
#else
#define ESP_INLINE static inline __attribute__((always_inline))
#define ESP_MEMBER __attribute__((always_inline)) inline
#endif
// For long functions: inlined but in the scalar variant, where a vector is four registers and the code would grow too much.
#if defined(ESP_ISA_avx512) || defined(ESP_ISA_avx2)
#define ESP_INLINE_IN_REGISTERS ESP_INLINE
#else
#define ESP_INLINE_IN_REGISTERS static inline __attribute__((noinline))
#endif
#define ESP_CONCAT_(a, b) a##_##b
#define ESP_CONCAT(a, b) ESP_CONCAT_(a, b)
// The name of this variant's object of an operation, e.g. gradient_norm_avx2.
#define ESP_VARIANT(operation) ESP_CONCAT(operation, ESP_ISA)

#if defined(ESP_ISA_avx512)
#include "simd/avx512.h"
#elif defined(ESP_ISA_avx2)
#include "simd/avx2.h"
#else
#include "simd/scalar.h"
#endif

namespace {

// Storage of 16-bit floats, so that kernels can be templates over the element type.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// use(element) with an element of that type, whose value says nothing: function templates are picked by decltype(element).
template <class Use>
ESP_INLINE auto with_dtype(esp_dtype dtype, const Use& use) {
  switch (dtype) {
    case ESP_BF16:
      return use(bf16{});
    case ESP_F16:
      return use(f16{});
    default:
      return use(float{});
  }
}

ESP_INLINE f32x16 load(const bf16* p) { return load_bf16(&p->bits); }
ESP_INLINE f32x16 load(const f16* p) { return load_f16(&p->bits); }
ESP_INLINE void store(bf16* p, f32x16 v) { store_bf16(&p->bits, v); }
ESP_INLINE void store(f16* p, f32x16 v) { store_f16(&p->bits, v); }

ESP_INLINE f32x16 load_n(const bf16* p, int64_t n) {
  uint16_t lanes[16] = {};
  __builtin_memcpy(lanes, p, static_cast<size_t>(n) * 2);
  return load_bf16(lanes);
}
ESP_INLINE f32x16 load_n(const f16* p, int64_t n) {
  uint16_t lanes[16] = {};
  __builtin_memcpy(lanes, p, static_cast<size_t>(n) * 2);
  return load_f16(lanes);
}
ESP_INLINE void store_n(bf16* p, f32x16 v, int64_t n) {
  uint16_t lanes[16];
  store_bf16(lanes, v);
  __builtin_memcpy(p, lanes, static_cast<size_t>(n) * 2);
}
ESP_INLINE void store_n(f16* p, f32x16 v, int64_t n) {
  uint16_t lanes[16];
  store_f16(lanes, v);
  __builtin_memcpy(p, lanes, static_cast<size_t>(n) * 2);
}

// The 16 bits of elements i .. i+15 of a bit field, i a multiple of 16; load_bits_n reads only the bytes that hold n.
ESP_INLINE uint16_t load_bits(const uint8_t* bits, int64_t i) {
  uint16_t value;
  __builtin_memcpy(&value, bits + (i >> 3), 2);
  return value;
}
ESP_INLINE uint16_t load_bits_n(const uint8_t* bits, int64_t i, int64_t n) {
  uint16_t value = bits[i >> 3];
  if (n > 8) value = static_cast<uint16_t>(value | bits[(i >> 3) + 1] << 8);
  return static_cast<uint16_t>(value & ((1u << n) - 1));
}
ESP_INLINE void store_bits(uint8_t* bits, int64_t i, uint16_t value) { __builtin_memcpy(bits + (i >> 3), &value, 2); }
ESP_INLINE void store_bits_n(uint8_t* bits, int64_t i, uint16_t value, int64_t n) {
  value = static_cast<uint16_t>(value & ((1u << n) - 1));
  bits[i >> 3] = static_cast<uint8_t>(value);
  if (n > 8) bits[(i >> 3) + 1] = static_cast<uint8_t>(value >> 8);
}

constexpr float largest_float = 3.40282347e+38f;

// load and load_n, store and store_n in one, for n <= 16 that is 16 as a rule.
template <class T>
ESP_INLINE f32x16 load_up_to(const T* p, int64_t n) {
  return n == 16 ? load(p) : load_n(p, n);
}
template <class T>
ESP_INLINE void store_up_to(T* p, f32x16 v, int64_t n) {
  if (n == 16) {
    store(p, v);
  } else {
    store_n(p, v, n);
  }
}

// Far enough ahead to hide memory latency at the bandwidth of one core; measured best between 512 and 1024 bytes.
constexpr int64_t prefetch_bytes = 768;
template <class T>
ESP_INLINE void prefetch(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + prefetch_bytes, 0, 3);
}

}  // namespace
