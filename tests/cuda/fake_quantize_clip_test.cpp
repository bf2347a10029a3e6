// The MSE observer on a device finds the CPU's scales and zero points, bit for bit: ranges by the moving
// average from nothing, then the search. Shapes are those of each way through the kernels and of the ends of
// segments and chunks; numbers of ratios that fours divide and do not; NaN, infinities, channels of zeros and
// of nothing finite, and one whose scale cannot be used.
#include "espalier/cuda/fake_quantize_clip.h"

#include <cmath>

#include "espalier/cuda/fake_quantize.h"
#include "fake_quantize_subjects.h"

namespace {

using namespace esp_test;

struct Subject {
  Subject(const esp_quantizer& quantizer, const Shape& shape, esp_dtype dtype, Random& random)
      : n(shape.outer * shape.channels * shape.inner), x(static_cast<size_t>(n * size_of(dtype))) {
    const int64_t silent = random.below(4);  // 0: channel 0 holds nothing finite; 1: zeros
    for (int64_t i = 0; i < n; i++) {
      float v = random.uniform() * (i % 97 == 0 ? 9.0f : 0.5f);
      if (i / shape.inner % shape.channels == 0 && silent < 2) v = silent == 0 ? NAN : 0.0f;
      put(x, i, dtype, v);
    }
    put_odd(x, n, dtype, random);
    scale.resize(static_cast<size_t>(shape.channels), -7);
    if (quantizer.symmetric == 0 || random.below(2) == 0) zero_point.resize(scale.size(), -7);
    for (int64_t c = 0; c < 2 * shape.channels; c++)
      running.push_back(c < shape.channels ? INFINITY : -INFINITY);
    shift = random.below(3) == 0 ? 1 + random.below(7) : 0;
    host = shaped<esp_quantized>(shape, dtype);
    host.y_dtype = dtype;
  }

  int64_t n, shift;
  std::vector<uint8_t> x;
  std::vector<float> scale, running;
  std::vector<int32_t> zero_point;
  esp_quantized host;
};

struct OnDevice {
  explicit OnDevice(const Subject& s)
      : x(s.x, s.shift * size_of(s.host.dtype)),
        scale(s.scale),
        running(s.running),
        zero_point(s.zero_point),
        tensor(s.host) {
    tensor.x = x.get();
    tensor.scale = scale.get();
    tensor.running = running.get();
    tensor.zero_point = zero_point.get();
  }
  Device<uint8_t> x;
  Device<float> scale, running;
  Device<int32_t> zero_point;
  esp_quantized tensor;
};

void compare(const esp_quantizer& quantizer, std::vector<Subject>& subjects, bool usable = true) {
  std::vector<OnDevice> memory;
  std::vector<esp_quantized> device, host;
  memory.reserve(subjects.size());
  for (Subject& subject : subjects) {
    memory.emplace_back(subject);
    device.push_back(memory.back().tensor);
    esp_quantized t = subject.host;
    t.x = subject.x.data();
    t.scale = subject.scale.data();
    t.zero_point = subject.zero_point.empty() ? nullptr : subject.zero_point.data();
    host.push_back(t);
  }
  const int64_t count = static_cast<int64_t>(subjects.size());
  CHECK(esp_fake_quantize(&quantizer, host.data(), count) == (usable ? ESP_OK : ESP_NON_FINITE));
  esp_quantizer average = quantizer;
  average.observer = ESP_OBSERVER_MOVING_AVERAGE;
  average.average = 0.5f;
  const Planned ranges([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fake_quantize_plan(&average, device.data(), count, plan, table);
  });
  const Planned search([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fake_quantize_clip_plan(&quantizer, device.data(), count, plan, table);
  });
  const Device<esp_cuda_quantize_result> results(count);
  const Stream stream;
  const auto run = [&] {
    const esp_status status =
        esp_cuda_fake_quantize(&ranges.plan, ranges.table(), ranges.workspace(), results.get(), stream.get());
    return status != ESP_OK
               ? status
               : esp_cuda_fake_quantize_clip(&search.plan, search.table(), search.workspace(), stream.get());
  };
  const auto check = [&] {
    for (size_t t = 0; t < subjects.size(); t++) {
      const int failed = checks_failed;
      CHECK(same(memory[t].scale.values(), subjects[t].scale));
      CHECK(!usable || same(memory[t].zero_point.values(), subjects[t].zero_point));
      if (checks_failed > failed) print(host[t], subjects[t].shift);
    }
  };
  CHECK(run() == ESP_OK && stream.wait());
  check();
  for (size_t t = 0; t < subjects.size(); t++) {
    memory[t].running.set(subjects[t].running);
    memory[t].scale.set(std::vector<float>(subjects[t].scale.size(), -3));
  }
  CHECK(run_captured(stream, 1, run));
  check();
}

esp_quantizer quantizer_of(Random& random) {
  esp_quantizer q = grid_of(ESP_OBSERVER_MSE, random);
  q.clip_steps = 1 + static_cast<int32_t>(random.below(9));
  q.clip_smallest = 0.3f;
  return q;
}

void test(const Setting& setting) {
  Random random(setting.seed);
  const Shape small[] = {{1, 1, 1},   {1, 1, 17}, {1, 1, 513}, {1, 3, 8},  {1, 5, 45}, {1, 2, 600},
                         {24, 3, 45}, {20, 7, 1}, {9, 4, 3},   {33, 9, 1}, {0, 3, 2},  {2, 0, 5},
                         {4, 1, 40},  {19, 3, 1}, {5, 2, 0},   {17, 65, 1}};
  const Shape large[] = {{1, 1, 8193}, {1, 1, 40001}, {1, 2, 9000}, {2, 2, 2100},
                         {300, 33, 1}, {3, 1100, 1},  {70, 3, 15},  {700, 20, 1},
                         {60, 2, 600}, {259, 3, 1},   {2053, 3, 1}, {130, 257, 1}};
  const esp_quantizer quantizer = quantizer_of(random);
  std::vector<Subject> subjects;
  compare(quantizer, subjects);
  add_subjects(subjects, quantizer, small, setting.small, random);
  if (!setting.small) add_subjects(subjects, quantizer, large, true, random);
  compare(quantizer, subjects);
  // A scale whose reciprocal overflows.
  std::vector<Subject> unusable;
  unusable.emplace_back(quantizer, Shape{1, 1, 24}, ESP_F32, random);
  for (int64_t i = 0; i < 24; i++) put(unusable[0].x, i, ESP_F32, 1e-45f);
  compare(quantizer, unusable, false);
  // With a smallest scale all are usable.
  esp_quantizer bounded = quantizer;
  bounded.smallest_scale = 0.02f;
  compare(bounded, unusable);
  CHECK(unusable[0].scale[0] == 0.02f);
  std::vector<Subject> others;
  add_subjects(others, bounded, small, false, random);
  compare(bounded, others);
}

void test_refusals() {
  esp_cuda_plan plan = {};
  esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, ESP_OBSERVER_MSE, 1, 127, 0, 10, 0.5f, 0};
  float value[16] = {};
  esp_quantized good = {};
  good.x = value;
  good.scale = good.running = value;
  good.outer = good.channels = good.inner = 2;
  const auto refused = [&](const char* why, auto change) {
    esp_quantized t = good;
    change(t);
    CHECK(esp_cuda_fake_quantize_clip_plan(&quantizer, &t, 1, &plan, nullptr) == ESP_INVALID_ARGUMENT);
    CHECK(std::strstr(esp_cuda_last_error(), why) != nullptr);
  };
  CHECK(esp_cuda_fake_quantize_clip_plan(&quantizer, &good, 1, &plan, nullptr) == ESP_OK);
  CHECK(esp_cuda_fake_quantize_clip_plan(&quantizer, &good, 1, nullptr, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_fake_quantize_clip_plan(nullptr, &good, 1, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_fake_quantize_clip(&plan, nullptr, value, nullptr) == ESP_INVALID_ARGUMENT);
  refused("tensor 0 is NULL", [](esp_quantized& t) { t.x = nullptr; });
  refused("scale is NULL", [](esp_quantized& t) { t.scale = nullptr; });
  refused("running is NULL", [](esp_quantized& t) { t.running = nullptr; });
  quantizer.symmetric = 0;
  refused("zero_point is NULL", [](esp_quantized&) {});
  quantizer.observer = ESP_OBSERVER_MIN_MAX;
  refused("observer 1; MSE (3) is needed", [](esp_quantized&) {});
}

}  // namespace

int main(int argc, char** argv) {
  test_refusals();
  return run_tests(argc, argv, test);
}
