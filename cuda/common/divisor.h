// Division by what a plan knows, in three instructions where the device's own takes twenty. Plain C++, for plans too.
#pragma once
#include <cstdint>

namespace esp {

// Granlund and Montgomery, Division by Invariant Integers using Multiplication (1994), figure 4.1: with
// shift = ceil(log2 d) and multiplier = floor(2^32 (2^shift - d) / d) + 1 the quotient of n is
// (high word of multiplier * n, plus n) >> shift. The sum fits below 2^31.
struct Divisor {
  uint32_t multiplier;
  int32_t shift;
};

// 1 <= d <= 2^31.
constexpr Divisor divisor_of(uint32_t d) {
  int32_t shift = 0;
  while ((uint64_t{1} << shift) < d) shift++;
  return {static_cast<uint32_t>((((uint64_t{1} << shift) - d) << 32) / d + 1), shift};
}

// n < 2^31.
constexpr uint32_t quotient(uint32_t n, Divisor d) {
  return (static_cast<uint32_t>(uint64_t{n} * d.multiplier >> 32) + n) >> d.shift;
}

}  // namespace esp
