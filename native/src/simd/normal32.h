// 32 normal numbers of 16 blocks, the same bits on every instruction set.
#pragma once
#include "normal.h"
#include "simd/simd.h"

namespace {

// Two numbers of 53 bits from each of 16 blocks.
ESP_INLINE_IN_REGISTERS void philox16(uint64_t key, uint64_t counter, double* u, double* v) {
  uint32_t c0[16], c1[16], c2[16], c3[16];
  for (int i = 0; i < 16; i++) {
    const uint64_t at = counter + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(at);
    c1[i] = static_cast<uint32_t>(at >> 32);
    c2[i] = esp::noise_stream;
    c3[i] = 0;
  }
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < esp::philox_rounds; round++) {
    for (int i = 0; i < 16; i++) {
      const uint64_t a = uint64_t{c0[i]} * esp::philox_a, b = uint64_t{c2[i]} * esp::philox_b;
      c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(b);
      c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(a);
    }
    k0 += esp::philox_key_a;
    k1 += esp::philox_key_b;
  }
  for (int i = 0; i < 16; i++) {
    u[i] = 1 - esp::fraction(c0[i], c1[i]);
    v[i] = esp::fraction(c2[i], c3[i]);
  }
}

// The numbers of the 16 blocks from `counter` on, times sigma. Not inlined: it is long, and the compiler
// turns it into vectors only where nothing is around it.
__attribute__((noinline)) void normal32(uint64_t key, uint64_t counter, double sigma, float* z) {
  double u[16], v[16];
  philox16(key, counter, u, v);
  for (int i = 0; i < 16; i++) esp::normal_pair(u[i], v[i], sigma, z + 2 * i, z + 2 * i + 1);
}

}  // namespace
