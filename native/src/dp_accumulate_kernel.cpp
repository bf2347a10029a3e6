// dp_accumulate, noise: Philox blocks, Box and Muller in double, 16 blocks and 32 elements a turn.
//
// Numerics: integers exact; log, sine and cosine by polynomials in double without fma, so that the loops over
// 16 lanes have the same bits however a compiler turns them into vectors; one rounding of sigma * z to float,
// one of the sum, one of the quotient. Bytes: 8 an element; the time is that of the arithmetic. Tail: the
// same on a copy of 32.
#include "dp_accumulate_kernel.h"

#include "simd/math.h"

namespace {

// Two numbers of 53 bits from each of 16 blocks.
ESP_INLINE_IN_REGISTERS void philox16(uint64_t key, uint64_t counter, double* u, double* v) {
  uint32_t c0[16], c1[16], c2[16], c3[16];
  for (int i = 0; i < 16; i++) {
    const uint64_t at = counter + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(at);
    c1[i] = static_cast<uint32_t>(at >> 32);
    c2[i] = 1;
    c3[i] = 0;
  }
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < 16; i++) {
      const uint64_t a = uint64_t{c0[i]} * 0xD2511F53u, b = uint64_t{c2[i]} * 0xCD9E8D57u;
      c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(b);
      c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(a);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < 16; i++) {
    // In (0, 1]: the logarithm of 0 does not exist.
    u[i] = 1 - static_cast<double>(uint64_t{c0[i]} << 21 | c1[i] >> 11) * 0x1p-53;
    v[i] = static_cast<double>(uint64_t{c2[i]} << 21 | c3[i] >> 11) * 0x1p-53;
  }
}

// cos and sin of 2 pi v, 0 <= v < 1, within 1e-15: an eighth of a turn either side of the nearest quarter.
ESP_INLINE_IN_REGISTERS void turn16(const double* v, double* cosine, double* sine) {
  for (int i = 0; i < 16; i++) {
    const double quarter = (4 * v[i] + 0x1.8p52) - 0x1.8p52;  // the nearest integer, 0 .. 4
    const double x = (4 * v[i] - quarter) * 0x1.921fb54442d18p+0;
    const double s = x * x;
    double p = -1.0 / 1307674368000.0;  // Taylor: x is at most pi / 4
    p = p * s + 1.0 / 6227020800.0;
    p = p * s - 1.0 / 39916800.0;
    p = p * s + 1.0 / 362880.0;
    p = p * s - 1.0 / 5040.0;
    p = p * s + 1.0 / 120.0;
    p = p * s - 1.0 / 6.0;
    const double sin_x = x + x * (s * p);
    double q = 1.0 / 20922789888000.0;
    q = q * s - 1.0 / 87178291200.0;
    q = q * s + 1.0 / 479001600.0;
    q = q * s - 1.0 / 3628800.0;
    q = q * s + 1.0 / 40320.0;
    q = q * s - 1.0 / 720.0;
    q = q * s + 1.0 / 24.0;
    const double cos_x = 1 - s * (0.5 - s * q);
    const int turn = static_cast<int>(quarter) & 3;
    const double c = (turn & 1) != 0 ? sin_x : cos_x, d = (turn & 1) != 0 ? cos_x : sin_x;
    cosine[i] = turn == 1 || turn == 2 ? -c : c;
    sine[i] = turn >= 2 ? -d : d;
  }
}

ESP_INLINE_IN_REGISTERS void add32(float* sum, uint64_t key, uint64_t counter, double sigma, float divisor) {
  double u[16], v[16], logarithm[16], cosine[16], sine[16];
  philox16(key, counter, u, v);
  log16(u, logarithm);
  turn16(v, cosine, sine);
  for (int i = 0; i < 16; i++) {
    const double radius = sigma * __builtin_sqrt(-2 * logarithm[i]);
    sum[2 * i] = (sum[2 * i] + static_cast<float>(radius * cosine[i])) / divisor;
    sum[2 * i + 1] = (sum[2 * i + 1] + static_cast<float>(radius * sine[i])) / divisor;
  }
}

void noise(float* sum, int64_t n, uint64_t key, uint64_t counter, double sigma, float divisor) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) add32(sum + i, key, counter + static_cast<uint64_t>(i / 2), sigma, divisor);
  if (i < n) {
    float last[32] = {};
    const size_t bytes = static_cast<size_t>(n - i) * sizeof(float);
    __builtin_memcpy(last, sum + i, bytes);
    add32(last, key, counter + static_cast<uint64_t>(i / 2), sigma, divisor);
    __builtin_memcpy(sum + i, last, bytes);
  }
}

}  // namespace

namespace esp {
extern const DpAccumulateKernels ESP_VARIANT(dp_accumulate);
const DpAccumulateKernels ESP_VARIANT(dp_accumulate) = {noise};
}  // namespace esp
