// kd_softmax_loss through the C ABI on heap buffers of exactly the size that it may touch, for the
// sanitizers: every instruction set, one to three threads, sizes around lanes, segments and the transposed
// rows, strides, odd addresses.
#include "espalier/kd_softmax_loss.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "check.h"

namespace {

// A buffer of exactly n elements of `size` bytes, filled with numbers that are logits in every type.
struct Buffer {
  Buffer(int64_t n, int64_t size, unsigned seed)
      : bytes(static_cast<size_t>(n * size)), data(static_cast<char*>(std::malloc(bytes == 0 ? 1 : bytes))) {
    for (int64_t i = 0; i < n; i++) {
      seed = seed * 1664525u + 1013904223u;
      const float x = static_cast<float>(static_cast<int>(seed >> 16 & 1023) - 512) / 64.0f;
      if (size == 4) {
        std::memcpy(data + i * 4, &x, 4);
      } else {
        // A bfloat16 of x; as a half it is some other finite number.
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        const uint16_t half = static_cast<uint16_t>(bits >> 16);
        std::memcpy(data + i * 2, &half, 2);
      }
    }
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  size_t bytes;
  char* data;
};

int64_t size_of(esp_dtype dtype) {
  return dtype == ESP_F32 ? 4 : 2;
}

void run(int64_t rows, int64_t classes, int64_t padding, esp_dtype dtype, double temperature, bool teacher,
         bool bound, bool masked) {
  const int64_t stride = classes + padding, n = rows == 0 ? 0 : (rows - 1) * stride + classes;
  const Buffer student(n, size_of(dtype), 1), teachers(n, size_of(dtype), 2), bounds(n, size_of(dtype), 3);
  std::unique_ptr<int64_t[]> labels(new int64_t[static_cast<size_t>(rows)]);
  for (int64_t i = 0; i < rows; i++) labels[static_cast<size_t>(i)] = i % 5 == 4 ? -100 : i * 7 % classes;
  const size_t mask_bytes = static_cast<size_t>((rows + 7) / 8);
  std::unique_ptr<uint8_t[]> mask(new uint8_t[mask_bytes]);
  std::memset(mask.get(), 0xb5, mask_bytes);
  esp_kd_softmax_loss_arguments a{};
  a.rows = rows;
  a.classes = classes;
  a.student = {student.data, stride, dtype};
  if (teacher) a.teacher = {teachers.data, stride, dtype};
  if (bound) a.bound = {bounds.data, stride, dtype};
  a.labels = labels.get();
  a.row_mask = masked ? mask.get() : nullptr;
  a.gradient_stride = stride;
  a.gradient_dtype = dtype;
  a.ignore_index = -100;
  a.temperature = temperature;
  a.alpha = 0.25;
  a.beta = bound ? 0.5 : 0;

  const Buffer first(n, size_of(dtype), 4);
  double first_loss = 0;
  bool have_first = false;
  for (int32_t isa = ESP_ISA_SCALAR; isa <= esp_isa_best(); isa++) {
    CHECK(esp_isa_set(isa) == ESP_OK);
    for (int32_t threads = 1; threads <= 3; threads += 2) {
      CHECK(esp_threads_set(threads) == ESP_OK);
      const Buffer gradient(n, size_of(dtype), 4);
      esp_kd_softmax_loss_result result;
      a.gradient = gradient.data;
      CHECK(esp_kd_softmax_loss(&a, &result) == ESP_OK);
      CHECK(std::isfinite(result.loss));
      if (!have_first) {
        std::memcpy(first.data, gradient.data, gradient.bytes);
        first_loss = result.loss;
        have_first = true;
      }
      CHECK(result.loss == first_loss);
      CHECK(std::memcmp(first.data, gradient.data, gradient.bytes) == 0);
    }
  }
  a.gradient = nullptr;
  esp_kd_softmax_loss_result result;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_OK);
  CHECK(result.loss == first_loss);
}

void refusals() {
  float logits[6] = {1, 2, 3, 4, 5, 6};
  const int64_t labels[2] = {0, 3};
  esp_kd_softmax_loss_arguments a{};
  esp_kd_softmax_loss_result result;
  a.rows = 2;
  a.classes = 3;
  a.student = {logits, 3, ESP_F32};
  a.labels = labels;
  a.ignore_index = -100;
  a.temperature = 1;
  a.alpha = 1;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_last_error(), "label 3 in row 1") != nullptr);
  a.labels = nullptr;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_OK);
  CHECK(esp_kd_softmax_loss(nullptr, &result) == ESP_INVALID_ARGUMENT);
  a.student.stride = 2;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
  a.student.stride = INT64_MAX / 2;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
  a.student.stride = 3;
  a.student.dtype = 7;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
  a.student.dtype = ESP_F32;
  a.gradient = logits;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
  a.gradient = nullptr;
  a.temperature = 0;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
  a.temperature = 1;
  a.alpha = std::nan("");
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
  a.alpha = 1;
  a.beta = 1;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
  a.beta = 0;
  a.classes = 0;
  CHECK(esp_kd_softmax_loss(&a, &result) == ESP_INVALID_ARGUMENT);
}

}  // namespace

int main() {
  const int64_t sizes[][2] = {{0, 3},    {1, 1},    {5, 1},     {17, 10},  {16, 16}, {33, 31},
                              {16, 32},  {3, 33},   {18, 64},   {18, 65},  {2, 257}, {2, 2048},
                              {2, 2049}, {3, 4100}, {2, 30522}, {40, 2100}};
  for (const auto& size : sizes) {
    for (const esp_dtype dtype : {ESP_F32, ESP_BF16, ESP_F16}) {
      run(size[0], size[1], 0, dtype, 2, true, false, false);
      run(size[0], size[1], 3, dtype, 3, true, true, true);
      run(size[0], size[1], 1, dtype, 4, true, false, true);
      run(size[0], size[1], 0, dtype, 1, true, true, false);
      run(size[0], size[1], 5, dtype, 1, false, false, true);
    }
  }
  refusals();
  return finish();
}
