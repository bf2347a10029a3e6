// The gradients of learned scales on a device have the CPU's bits. Shapes are those of each way through the
// kernels and of the ends of segments (512 elements of rows, 16 rows of a matrix) and chunks (16 segments,
// 128 rows): one scale for all, channels of one chunk and of several, short rows that share a segment,
// columns with and without a last, shorter row; more chunks than lanes of the last sum; unaligned starts; NaN
// and infinities; gradients of x in place.
#include "espalier/cuda/fake_quantize_scale_gradient.h"

#include <cmath>

#include "fake_quantize_scale_gradient.h"
#include "fake_quantize_subjects.h"

namespace {

using namespace esp_test;

// One tensor of both sides, its outputs full of rubbish.
struct Subject {
  Subject(const esp_quantizer& quantizer, const Shape& shape, esp_dtype dtype, Random& random)
      : n(shape.outer * shape.channels * shape.inner), x(static_cast<size_t>(n * size_of(dtype))), grad_y(x) {
    for (int64_t i = 0; i < n; i++) {
      put(x, i, dtype, random.uniform() * (i % 5 == 0 ? 4.0f : 0.5f));
      put(grad_y, i, dtype, random.uniform());
    }
    put_odd(x, n, dtype, random);
    const float values[] = {NAN, INFINITY, -INFINITY, -0.0f};
    if (random.below(4) == 0 && n > 0) put(grad_y, random.below(n), dtype, values[random.below(4)]);
    in_place = random.below(3) == 0;
    if (!in_place && random.below(2) == 0) grad_x.resize(x.size(), 0xa5);
    for (int64_t c = 0; c < shape.channels; c++) {
      scale.push_back(std::fabs(random.uniform()) * 0.05f + 1e-3f);
      zero_point.push_back(quantizer.qmin +
                           static_cast<int32_t>(random.below(quantizer.qmax - quantizer.qmin + 1)));
    }
    grad_scale.resize(scale.size(), -7);
    if (random.below(2) == 0) grad_zero_point.resize(scale.size(), -7);
    if (quantizer.qmin <= 0 && random.below(2) == 0) zero_point.clear();
    shift = random.below(3) == 0 ? 1 + random.below(7) : 0;
    host = shaped<esp_scale_gradient>(shape, dtype);
    host.factor = 0.25f + random.uniform() * 0.1f;
  }
  esp_scale_gradient on_host() {
    esp_scale_gradient g = host;
    g.x = x.data();
    g.grad_y = grad_y.data();
    g.grad_x = in_place ? grad_y.data() : grad_x.empty() ? nullptr : grad_x.data();
    g.scale = scale.data();
    g.zero_point = zero_point.empty() ? nullptr : zero_point.data();
    g.grad_scale = grad_scale.data();
    g.grad_zero_point = grad_zero_point.empty() ? nullptr : grad_zero_point.data();
    return g;
  }

  int64_t n, shift;
  std::vector<uint8_t> x, grad_y, grad_x;
  std::vector<float> scale, grad_scale, grad_zero_point;
  std::vector<int32_t> zero_point;
  bool in_place;
  esp_scale_gradient host;
};

struct OnDevice {
  explicit OnDevice(const Subject& s)
      : x(s.x, s.shift * size_of(s.host.dtype)),
        grad_y(s.grad_y, (s.shift + s.shift % 3) * size_of(s.host.dtype)),
        grad_x(s.grad_x, s.shift / 2 * size_of(s.host.dtype)),
        scale(s.scale),
        grad_scale(s.grad_scale),
        grad_zero_point(s.grad_zero_point),
        zero_point(s.zero_point),
        gradient(s.host) {
    gradient.x = x.get();
    gradient.grad_y = grad_y.get();
    gradient.grad_x = s.in_place ? grad_y.get() : grad_x.get();
    gradient.scale = scale.get();
    gradient.zero_point = zero_point.get();
    gradient.grad_scale = grad_scale.get();
    gradient.grad_zero_point = grad_zero_point.get();
  }
  void restore(const Subject& s) const {
    grad_y.set(s.grad_y);
    grad_scale.set(s.grad_scale);
    grad_zero_point.set(s.grad_zero_point);
  }
  Device<uint8_t> x, grad_y, grad_x;
  Device<float> scale, grad_scale, grad_zero_point;
  Device<int32_t> zero_point;
  esp_scale_gradient gradient;
};

// A NaN is a NaN.
bool same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
  bool equal = a.size() == b.size();
  for (size_t i = 0; equal && i < a.size(); i++) {
    equal = std::memcmp(&a[i], &b[i], 4) == 0 || (a[i] != a[i] && b[i] != b[i]);
  }
  return equal;
}

void compare(const esp_quantizer& quantizer, std::vector<Subject>& subjects) {
  std::vector<OnDevice> memory;
  std::vector<esp_scale_gradient> device;
  memory.reserve(subjects.size());
  for (const Subject& subject : subjects) {
    memory.emplace_back(subject);
    device.push_back(memory.back().gradient);
  }
  const std::vector<Subject> before = subjects;
  for (Subject& subject : subjects) {
    const esp_scale_gradient host = subject.on_host();
    CHECK(esp_fake_quantize_scale_gradient(&quantizer, &host) == ESP_OK);
  }
  const int64_t count = static_cast<int64_t>(subjects.size());
  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fake_quantize_scale_gradient_plan(&quantizer, device.data(), count, plan, table);
  });
  const Device<esp_cuda_scale_gradient_result> results(count);
  const Stream stream;
  const auto run = [&] {
    return esp_cuda_fake_quantize_scale_gradient(&planned.plan, planned.table(), planned.workspace(),
                                                 results.get(), stream.get());
  };
  const auto check = [&] {
    const std::vector<esp_cuda_scale_gradient_result> found = results.values();
    for (size_t t = 0; t < subjects.size(); t++) {
      const int failed = checks_failed;
      CHECK(found[t].bad_channel == -1);
      CHECK(same_numbers(memory[t].grad_scale.values(), subjects[t].grad_scale));
      CHECK(same_numbers(memory[t].grad_zero_point.values(), subjects[t].grad_zero_point));
      CHECK(same(memory[t].grad_y.values(), subjects[t].grad_y));
      CHECK(same(memory[t].grad_x.values(), subjects[t].grad_x));
      if (checks_failed > failed) print(subjects[t].host, subjects[t].shift);
    }
  };
  CHECK(run() == ESP_OK && stream.wait());
  check();
  // The workspace is as it was: again, as a graph.
  for (size_t t = 0; t < subjects.size(); t++) memory[t].restore(before[t]);
  results.zero();
  CHECK(run_captured(stream, 1, run));
  check();
}

esp_quantizer quantizer_of(Random& random) {
  esp_quantizer q = {};
  const int32_t bits = 2 + static_cast<int32_t>(random.below(7));
  const bool is_unsigned = random.below(2) == 0;
  q.qmin = is_unsigned ? 0 : -(1 << (bits - 1)) + 1;
  q.qmax = is_unsigned ? (1 << bits) - 1 : (1 << (bits - 1)) - 1;
  q.rounding = static_cast<int32_t>(random.below(2));
  return q;
}

void test_unusable(Random& random) {
  const esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, 0, 0, 0, 0, 0, 0, 0};
  for (const Shape& shape : {Shape{1, 40, 24}, Shape{30, 40, 1}}) {
    Subject subject(quantizer, shape, ESP_F32, random);
    subject.zero_point.assign(40, 0);
    subject.scale[33] = NAN;
    subject.scale[20] = 0;
    const auto bad_channel = [&] {
      const OnDevice memory(subject);
      const Planned planned([&](esp_cuda_plan* plan, void* table) {
        return esp_cuda_fake_quantize_scale_gradient_plan(&quantizer, &memory.gradient, 1, plan, table);
      });
      const Device<esp_cuda_scale_gradient_result> results(1);
      CHECK(esp_cuda_fake_quantize_scale_gradient(&planned.plan, planned.table(), planned.workspace(),
                                                  results.get(), nullptr) == ESP_OK);
      memory.scale.set(std::vector<float>(40, 1));
      const int64_t found = results.values()[0].bad_channel;
      // Forgotten by the next call.
      CHECK(esp_cuda_fake_quantize_scale_gradient(&planned.plan, planned.table(), planned.workspace(),
                                                  results.get(), nullptr) == ESP_OK);
      CHECK(results.values()[0].bad_channel == (subject.zero_point[9] == 0 ? -1 : 9));
      return found;
    };
    CHECK(bad_channel() == 20);
    subject.zero_point[9] = 128;
    CHECK(bad_channel() == 9);
  }
}

#if !defined(ESP_ON_GPU)
// The end of a tensor of more than 2^32 bytes and 2^31 elements; its block is made the last of its kernel.
void test_far() {
  constexpr int64_t n = 3000000007;
  const Sparse<uint16_t> x(n), grad_y(n), grad_x(n);
  if (checks_failed > 0) return;
  // 0.25 steps of 1 away from it, 3 steps beyond the end.
  x.get()[n - 1] = 0x3e80;       // 0.25
  x.get()[n - 2] = 0x4040;       // 3
  grad_y.get()[n - 1] = 0x4000;  // 2
  grad_y.get()[n - 2] = 0x4080;  // 4
  const std::vector<float> ones = {1};
  const Device<float> scale(ones), grad_scale(1), grad_zero_point(1);
  const esp_quantizer quantizer = {-1, 1, ESP_ROUND_MULTIPLY, 0, 0, 0, 0, 0, 0, 0};
  const esp_scale_gradient far = {x.get(),
                                  grad_y.get(),
                                  grad_x.get(),
                                  scale.get(),
                                  nullptr,
                                  grad_scale.get(),
                                  grad_zero_point.get(),
                                  1,
                                  1,
                                  n,
                                  ESP_BF16,
                                  1};
  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fake_quantize_scale_gradient_plan(&quantizer, &far, 1, plan, table);
  });
  const int64_t blocks = planned.plan.operation[esp::sum_rows];
  esp::GradientCall state = {};
  state.arrived = static_cast<uint32_t>(blocks - 1);
  CHECK(esp_cuda_copy(planned.workspace(), &state, sizeof state, nullptr) == ESP_OK);
  emulator::options.first_block = blocks - 1;
  const Device<esp_cuda_scale_gradient_result> results(1);
  CHECK(esp_cuda_fake_quantize_scale_gradient(&planned.plan, planned.table(), planned.workspace(),
                                              results.get(), nullptr) == ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  emulator::options.first_block = 0;
  CHECK(grad_scale.values()[0] == 2 * -0.25f + 4);
  CHECK(grad_zero_point.values()[0] == -4);
  CHECK(grad_x.get()[n - 1] == 0x4000 && grad_x.get()[n - 2] == 0);
  CHECK(results.values()[0].bad_channel == -1);
}
#endif

void test(const Setting& setting) {
  Random random(setting.seed);
  const Shape small[] = {{1, 1, 1},   {1, 1, 17},  {1, 1, 513}, {1, 3, 8},   {1, 5, 45},
                         {1, 2, 600}, {24, 3, 45}, {3, 2, 20},  {20, 7, 1},  {9, 4, 3},
                         {33, 9, 1},  {0, 3, 2},   {2, 0, 5},   {4, 1, 40},  {2, 3, 19},
                         {1, 40, 1},  {19, 3, 1},  {5, 2, 0},   {18, 2, 64}, {17, 65, 1}};
  const Shape large[] = {{1, 1, 8193}, {1, 1, 20001}, {1, 2, 9000},  {2, 2, 2100}, {300, 33, 1},
                         {3, 1100, 1}, {70, 3, 15},   {700, 20, 1},  {60, 2, 300}, {5, 2, 513},
                         {259, 3, 1},  {2053, 3, 1},  {130, 257, 1}, {1, 70, 130}};
  for (int turn = 0; turn < 2; turn++) {
    const esp_quantizer quantizer = quantizer_of(random);
    std::vector<Subject> subjects;
    add_subjects(subjects, quantizer, small, false, random);
    if (!setting.small) add_subjects(subjects, quantizer, large, true, random);
    compare(quantizer, subjects);
  }
  std::vector<Subject> subjects;
  compare(quantizer_of(random), subjects);
  test_unusable(random);
  if (setting.seed % 10 == 1 && !setting.small) {  // more chunks than lanes of the last sum
    const esp_quantizer quantizer = quantizer_of(random);
    subjects.emplace_back(quantizer, Shape{1, 1, 300 * 8192 + 1}, ESP_BF16, random);
    subjects.emplace_back(quantizer, Shape{60000, 3, 1}, ESP_F32, random);
    compare(quantizer, subjects);
  }
#if !defined(ESP_ON_GPU)
  if (setting.seed == 1 && !setting.small) test_far();
#endif
}

void test_refusals() {
  esp_cuda_plan plan;
  esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, 0, 0, 0, 0, 0, 0, 0};
  float value[8] = {};
  const esp_scale_gradient good = {value,   value, nullptr, value, nullptr, value,
                                   nullptr, 2,     2,       2,     ESP_F32, 1};
  const auto refused = [&](const char* why, auto change) {
    esp_scale_gradient g = good;
    change(g);
    CHECK(esp_cuda_fake_quantize_scale_gradient_plan(&quantizer, &g, 1, &plan, nullptr) ==
          ESP_INVALID_ARGUMENT);
    CHECK(std::strstr(esp_cuda_last_error(), why) != nullptr);
  };
  CHECK(esp_cuda_fake_quantize_scale_gradient_plan(&quantizer, &good, 1, &plan, nullptr) == ESP_OK);
  CHECK(esp_cuda_fake_quantize_scale_gradient_plan(&quantizer, &good, 1, nullptr, nullptr) ==
        ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_fake_quantize_scale_gradient_plan(nullptr, &good, 1, &plan, nullptr) ==
        ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_fake_quantize_scale_gradient_plan(&quantizer, nullptr, 1, &plan, nullptr) ==
        ESP_INVALID_ARGUMENT);
  refused("tensor 0 is NULL", [](esp_scale_gradient& g) { g.x = nullptr; });
  refused("grad_y is NULL", [](esp_scale_gradient& g) { g.grad_y = nullptr; });
  refused("scale is NULL", [](esp_scale_gradient& g) { g.scale = nullptr; });
  refused("grad_scale is NULL", [](esp_scale_gradient& g) { g.grad_scale = nullptr; });
  refused("a factor of inf", [](esp_scale_gradient& g) { g.factor = INFINITY; });
  refused("element type 3", [](esp_scale_gradient& g) { g.dtype = 3; });
  refused("[2, -2, 2]", [](esp_scale_gradient& g) { g.channels = -2; });
  CHECK(esp_cuda_fake_quantize_scale_gradient(&plan, nullptr, value, nullptr, nullptr) ==
        ESP_INVALID_ARGUMENT);
  quantizer.qmin = 1;
  refused("a zero point of 0, outside 1 .. 127", [](esp_scale_gradient&) {});
}

}  // namespace

int main(int argc, char** argv) {
  test_refusals();
  return run_tests(argc, argv, test);
}
