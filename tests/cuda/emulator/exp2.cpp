#include "cuda_runtime.h"

namespace emulator {

// 2^x, off by up to 2^-22 of itself, as the instruction may be; denormal numbers are 0.
float exp2_approximate(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const float off = static_cast<float>(static_cast<int32_t>(bits * 0x9e3779b9u)) * 0x1p-31f;
  const float power =
      static_cast<float>(std::exp2(static_cast<double>(x)) * (1 + static_cast<double>(off) * 0x1p-22));
  return power < 0x1p-126f ? 0.0f : power;
}

}  // namespace emulator
