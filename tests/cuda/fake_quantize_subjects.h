// What the tests of fake_quantize and of its two operations in double share: grids and tensors. Data follow
// from a seed alone.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "device_test.h"
#include "espalier/fake_quantize.h"

namespace esp_test {

struct Shape {
  int64_t outer, channels, inner;
};

// Up to two elements that are NaN, infinite or -0.
inline void put_odd(std::vector<uint8_t>& x, int64_t n, esp_dtype dtype, Random& random) {
  const float values[] = {NAN, INFINITY, -INFINITY, -0.0f};
  for (int64_t odd = random.below(3); odd > 0 && n > 0; odd--)
    put(x, random.below(n), dtype, values[random.below(4)]);
}

// Tensor: esp_quantized, or esp_scale_gradient.
template <class Tensor>
Tensor shaped(const Shape& shape, esp_dtype dtype) {
  Tensor tensor = {};
  tensor.outer = shape.outer;
  tensor.channels = shape.channels;
  tensor.inner = shape.inner;
  tensor.dtype = dtype;
  return tensor;
}

template <class Tensor>
void print(const Tensor& tensor, int64_t shift) {
  std::printf("  [%lld, %lld, %lld] of type %d, shift %lld\n", static_cast<long long>(tensor.outer),
              static_cast<long long>(tensor.channels), static_cast<long long>(tensor.inner), tensor.dtype,
              static_cast<long long>(shift));
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// A grid of any width, symmetric or affine, and its rounding.
inline esp_quantizer grid_of(int32_t observer, Random& random) {
  esp_quantizer q = {};
  const int32_t bits = 2 + static_cast<int32_t>(random.below(7));
  q.symmetric = static_cast<int32_t>(random.below(2));
  const bool is_unsigned = q.symmetric == 0 && random.below(2) == 0;
  q.qmin = is_unsigned ? 0 : -(1 << (bits - 1)) + (q.symmetric != 0 && bits > 2 ? 1 : 0);
  q.qmax = is_unsigned ? (1 << bits) - 1 : (1 << (bits - 1)) - 1;
  q.rounding = static_cast<int32_t>(random.below(2));
  q.observer = observer;
  q.divisor = static_cast<float>(q.qmax);
  return q;
}

// A subject of a random type for each shape; `some`: for a third of them a seed, other seeds meet the others.
template <class Subject, size_t count>
void add_subjects(std::vector<Subject>& subjects, const esp_quantizer& quantizer,
                  const Shape (&shapes)[count], bool some, Random& random) {
  for (const Shape& shape : shapes) {
    if (!some || random.below(3) == 0)
      subjects.emplace_back(quantizer, shape, static_cast<esp_dtype>(random.below(3)), random);
  }
}

}  // namespace esp_test
