// fake_quantize through the C ABI, on heap buffers of exactly the size that the header asks for, so that ASAN sees any
// access outside, on every instruction set; every layout, output and type. Values are JUnit's affair; here all variants must
// agree, and calls that must fail must leave their outputs alone.
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "espalier/fake_quantize.h"

namespace {

int64_t size_of(esp_dtype dtype) { return dtype == ESP_F32 ? 4 : 2; }

// Memory of exactly so many bytes, at an address that is `offset` elements past an aligned one.
struct Exact {
  std::unique_ptr<char[]> memory;
  int64_t skip;
  Exact(int64_t bytes, int64_t offset) : memory(new char[static_cast<size_t>(bytes + offset)]), skip(offset) {
    std::memset(memory.get(), 0x5a, static_cast<size_t>(bytes + offset));
  }
  char* get() { return memory.get() + skip; }
};

// Values between -1 and 1 that F32, BF16 and F16 all hold, from a fixed sequence.
uint32_t next_random(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}
void fill(void* to, int64_t n, esp_dtype dtype, uint32_t seed) {
  for (int64_t i = 0; i < n; i++) {
    const float x = static_cast<float>(static_cast<int32_t>(next_random(seed) % 257) - 128) / 128.0f;
    if (dtype == ESP_F32) {
      static_cast<float*>(to)[i] = x;
    } else if (dtype == ESP_BF16) {
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(bits >> 16);
    } else {
      // Exact: at most 8 significant bits, and not below 2^-7.
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      const uint32_t exponent = bits >> 23 & 255, sign = bits >> 16 & 0x8000;
      static_cast<uint16_t*>(to)[i] =
          static_cast<uint16_t>(x == 0 ? 0 : sign | (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
    }
  }
}

uint64_t hash(const void* data, int64_t bytes, uint64_t h) {
  for (int64_t i = 0; i < bytes; i++) h = (h ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211ull;
  return h;
}

struct Case {
  int64_t outer, channels, inner;
};

// One call of everything on exact buffers; a hash of all that was written.
uint64_t everything(const Case& c, esp_dtype dtype, esp_dtype y_dtype, int32_t observer, bool symmetric, int64_t offset) {
  const int64_t n = c.outer * c.channels * c.inner, bits = (n + 7) / 8;
  Exact x(n * size_of(dtype), offset * size_of(dtype)), y(n * size_of(y_dtype), offset * size_of(y_dtype)), q(n, 0), gate(bits, 0);
  Exact scale(c.channels * 4, 0), zero(c.channels * 4, 0), running(c.channels * 8, 0);
  Exact grad_scale(c.channels * 4, 0), grad_zero(c.channels * 4, 0);
  fill(x.get(), n, dtype, 17);
  auto* scales = reinterpret_cast<float*>(scale.get());
  auto* zeros = reinterpret_cast<int32_t*>(zero.get());
  auto* averages = reinterpret_cast<float*>(running.get());
  for (int64_t i = 0; i < c.channels; i++) {
    scales[i] = 0.01f + 0.001f * static_cast<float>(i % 7);
    zeros[i] = symmetric ? 0 : 3;
    averages[i] = INFINITY;
    averages[c.channels + i] = -INFINITY;
  }
  const esp_quantizer quantizer = {symmetric ? -127 : 0, symmetric ? 127 : 255, symmetric ? ESP_ROUND_MULTIPLY : ESP_ROUND_DIVIDE,
                                   observer, symmetric, 127.0f, 0.5f, 3, 0.5f, 0};
  esp_quantized tensor = {x.get(), y.get(), reinterpret_cast<uint8_t*>(q.get()), reinterpret_cast<uint8_t*>(gate.get()),
                          scales,  zeros,   averages, c.outer, c.channels, c.inner, dtype, y_dtype, -1, -1};
  CHECK(esp_fake_quantize(&quantizer, &tensor, 1) == ESP_OK);
  CHECK(tensor.nan == 0 && tensor.infinite == 0);
  uint64_t h = 1469598103934665603ull;
  h = hash(y.get(), n * size_of(y_dtype), h);
  h = hash(q.get(), n, h);
  h = hash(gate.get(), bits, h);
  h = hash(scales, c.channels * 4, h);
  h = hash(zeros, c.channels * 4, h);
  h = hash(averages, c.channels * 8, h);

  const esp_scale_gradient gradient = {x.get(), x.get(), x.get(), scales, zeros, reinterpret_cast<float*>(grad_scale.get()),
                                       reinterpret_cast<float*>(grad_zero.get()), c.outer, c.channels, c.inner, dtype, 0.25f};
  CHECK(esp_fake_quantize_scale_gradient(&quantizer, &gradient) == ESP_OK);
  h = hash(x.get(), n * size_of(dtype), h);
  h = hash(grad_scale.get(), c.channels * 4, h);
  h = hash(grad_zero.get(), c.channels * 4, h);
  const esp_dequantized back = {reinterpret_cast<uint8_t*>(q.get()), y.get(), scales, zeros, c.outer, c.channels, c.inner, y_dtype,
                                symmetric};
  CHECK(esp_dequantize(&back) == ESP_OK);
  h = hash(y.get(), n * size_of(y_dtype), h);
  CHECK(esp_fake_quantize_backward(x.get(), reinterpret_cast<uint8_t*>(gate.get()), x.get(), n, dtype) == ESP_OK);
  return hash(x.get(), n * size_of(dtype), h);
}

void failures() {
  float x[6] = {1, 2, 3, 4, 5, 6}, y[6] = {}, scale[2] = {1, 0};
  esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, ESP_OBSERVER_NONE, 1, 127.0f, 0.5f, 3, 0.5f, 0};
  esp_quantized tensor = {x, y, nullptr, nullptr, scale, nullptr, nullptr, 1, 2, 3, ESP_F32, ESP_F32, 0, 0};
  CHECK(esp_fake_quantize(&quantizer, &tensor, 1) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_last_error(), "tensor 0, channel 1") != nullptr);
  scale[1] = 1;
  CHECK(esp_fake_quantize(nullptr, &tensor, 1) == ESP_INVALID_ARGUMENT);
  CHECK(esp_fake_quantize(&quantizer, nullptr, 1) == ESP_INVALID_ARGUMENT);
  CHECK(esp_fake_quantize(&quantizer, &tensor, -1) == ESP_INVALID_ARGUMENT);
  CHECK(esp_fake_quantize(&quantizer, nullptr, 0) == ESP_OK);
  const auto refused = [&](esp_quantizer q, esp_quantized t) {
    CHECK(esp_fake_quantize(&q, &t, 1) == ESP_INVALID_ARGUMENT);
    CHECK(y[0] == 0);
  };
  const auto with_quantizer = [&](auto change) {
    esp_quantizer q = quantizer;
    change(q);
    refused(q, tensor);
  };
  const auto with_tensor = [&](auto change) {
    esp_quantized t = tensor;
    change(t);
    refused(quantizer, t);
  };
  with_quantizer([](esp_quantizer& q) { q.qmax = 128; });
  with_quantizer([](esp_quantizer& q) { q.qmin = q.qmax; });
  with_quantizer([](esp_quantizer& q) { q.rounding = 2; });
  with_quantizer([](esp_quantizer& q) { q.observer = 4; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MIN_MAX, q.divisor = 0; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MIN_MAX, q.divisor = NAN; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MIN_MAX, q.symmetric = 0; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MOVING_AVERAGE; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MOVING_AVERAGE, q.average = 2; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MSE, q.clip_steps = 0; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MSE, q.clip_smallest = 1; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MIN_MAX, q.smallest_scale = -1; });
  with_quantizer([](esp_quantizer& q) { q.observer = ESP_OBSERVER_MIN_MAX, q.smallest_scale = 0x1p-128f; });
  with_tensor([](esp_quantized& t) { t.x = nullptr; });
  with_tensor([](esp_quantized& t) { t.scale = nullptr; });
  with_tensor([](esp_quantized& t) { t.dtype = 3; });
  with_tensor([](esp_quantized& t) { t.y_dtype = ESP_BF16; });
  with_tensor([](esp_quantized& t) { t.inner = -1; });
  with_tensor([](esp_quantized& t) { t.outer = INT64_MAX; });
  float none[1];
  tensor.x = none;
  tensor.inner = 0;
  CHECK(esp_fake_quantize(&quantizer, &tensor, 1) == ESP_OK);
  CHECK(esp_dequantize(nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_fake_quantize_scale_gradient(&quantizer, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_fake_quantize_backward(x, nullptr, y, 6, ESP_F32) == ESP_INVALID_ARGUMENT);
  CHECK(esp_fake_quantize_backward(x, nullptr, nullptr, 0, ESP_F32) == ESP_OK);
}

}  // namespace

int main() {
  // The last of each row are large enough for several threads (256 KiB of F32): one channel of several pieces (of 32768
  // elements), channels of one element, channels of several pieces, a matrix of several chunks (of 128 rows), and channels of
  // several pieces that come back.
  const Case cases[] = {
      {1, 1, 0},  {0, 3, 4},   {1, 1, 1},    {1, 1, 16}, {1, 1, 33}, {1, 1, 70001},
      {1, 17, 1}, {1, 66001, 1},
      {1, 5, 7},  {1, 9, 50},  {1, 8, 64},   {1, 2, 33001},
      {20, 3, 1}, {37, 48, 1}, {70, 257, 1}, {259, 257, 1},
      {9, 2, 5},  {3, 33, 7},  {24, 7, 45},  {4, 6, 64}, {2, 2, 33001},
  };
  for (const Case& c : cases) {
    for (esp_dtype dtype : {ESP_F32, ESP_BF16, ESP_F16}) {
      for (int32_t observer = ESP_OBSERVER_NONE; observer <= ESP_OBSERVER_MSE; observer++) {
        for (bool symmetric : {false, true}) {
          const esp_dtype y_dtype = symmetric ? dtype : ESP_F32;
          const int64_t offset = symmetric ? 0 : 1;
          uint64_t expected = 0;
          for (int32_t isa = ESP_ISA_SCALAR; isa <= esp_isa_best(); isa++) {
            CHECK(esp_isa_set(isa) == ESP_OK);
            for (int32_t threads : {1, 2}) {
              if (isa == ESP_ISA_SCALAR && threads == 2) continue;  // the same pieces, as the others show
              CHECK(esp_threads_set(threads) == ESP_OK);
              const uint64_t h = everything(c, dtype, y_dtype, observer, symmetric, offset);
              if (isa == ESP_ISA_SCALAR && threads == 1) expected = h;
              CHECK(h == expected);
            }
          }
        }
      }
    }
  }
  // Beyond the cache, where stores go past it, from an unaligned address.
  uint64_t expected = 0;
  for (int32_t isa = ESP_ISA_SCALAR; isa <= esp_isa_best(); isa++) {
    CHECK(esp_isa_set(isa) == ESP_OK);
    const uint64_t h = everything({1, 1100, 1003}, ESP_F32, ESP_F32, ESP_OBSERVER_MIN_MAX, true, 3) ^
                       everything({1100, 1003, 1}, ESP_F32, ESP_F32, ESP_OBSERVER_MIN_MAX, false, 3) ^
                       everything({1, 1, 1100003}, ESP_F32, ESP_F32, ESP_OBSERVER_NONE, true, 3);
    if (isa == ESP_ISA_SCALAR) expected = h;
    CHECK(h == expected);
  }
  failures();
  return finish();
}
