// kd_softmax_loss on a device gives the gradient of the CPU bit for bit, and parts of the loss that differ by
// the order of one sum. Classes around 64 (a quarter row a thread), 256 (a sub-block of sums), 2048 (a
// segment, a block) and beyond; every way to share exponentials (T = 1, 2, 4, other); absent parts; masks,
// strides, types, in place; rows far from 0, far apart, infinite, NaN.
#include "espalier/cuda/kd_softmax_loss.h"

#include <cmath>

#include "device_test.h"

namespace {

using namespace esp_test;

int64_t size_of(esp_dtype dtype) {
  return dtype == ESP_F32 ? 4 : 2;
}

void put(std::vector<uint8_t>& bytes, int64_t i, esp_dtype dtype, float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  uint16_t half = static_cast<uint16_t>(word >> 16);
  if (dtype == ESP_F16) {
    const bool special = x != x || std::isinf(x);
    const uint32_t magnitude = special                    ? (x != x ? 0x7e00 : 0x7c00)
                               : std::fabs(x) < 6.2e-5f   ? 0
                               : std::fabs(x) >= 65504.0f ? 0x7bff
                                                          : ((word & 0x7fffffff) >> 13) - (112u << 10);
    half = static_cast<uint16_t>((half & 0x8000) | magnitude);
  }
  std::memcpy(bytes.data() + i * size_of(dtype),
              dtype == ESP_F32 ? static_cast<void*>(&word) : static_cast<void*>(&half),
              static_cast<size_t>(size_of(dtype)));
}

struct Logits {
  std::vector<uint8_t> bytes;
  esp_logits host = {nullptr, 0, ESP_F32};
  int64_t shift = 0;
  Logits() = default;
  Logits(int64_t rows, int64_t classes, float spread, bool repeated, Random& random) {
    host.dtype = static_cast<esp_dtype>(random.below(3));
    host.stride = repeated ? 0 : classes + (random.below(3) == 0 ? 1 + random.below(5) : 0);
    const int64_t n = repeated ? classes : (rows > 0 ? (rows - 1) * host.stride + classes : 0);
    bytes.resize(static_cast<size_t>(n * size_of(host.dtype)));
    for (int64_t i = 0; i < n; i++) put(bytes, i, host.dtype, random.uniform() * spread);
    shift = random.below(4) == 0 ? 1 + random.below(3) : 0;
    host.data = bytes.data();
  }
};

enum class Rows { usual, strange };

// One call on both sides.
void compare(int64_t rows, int64_t classes, double temperature, Rows kind, Random& random) {
  const float spread = random.below(3) == 0 ? 30.0f : 4.0f;
  Logits student(rows, classes, spread, false, random), teacher, bound;
  const bool taught = random.below(4) != 0, labelled = random.below(4) != 0;
  if (taught) teacher = Logits(rows, classes, spread, rows > 1 && random.below(6) == 0, random);
  if (random.below(2) == 0) bound = Logits(rows, classes, spread, random.below(3) == 0, random);
  if (kind == Rows::strange) {
    const float values[] = {-INFINITY, -INFINITY, -3e7f, 2e7f, 1e10f, NAN, INFINITY};
    for (int64_t row = 0; row < rows; row++) {
      Logits& logits = taught && random.below(2) == 0 ? teacher : student;
      const int64_t first = row * logits.host.stride;
      const float value = values[random.below(7)];
      const int64_t many = random.below(8) == 0 ? classes : 1 + random.below(2);
      for (int64_t i = 0; i < many; i++)
        put(logits.bytes, first + (many == classes ? i : random.below(classes)), logits.host.dtype, value);
    }
    if (taught) put(teacher.bytes, 0, teacher.host.dtype, -INFINITY);
  }
  std::vector<int64_t> labels(static_cast<size_t>(labelled ? rows : 0));
  const bool all_ignored = random.below(8) == 0;
  for (int64_t& label : labels) label = all_ignored || random.below(4) == 0 ? -100 : random.below(classes);
  std::vector<uint8_t> mask(static_cast<size_t>(random.below(2) == 0 ? (rows + 7) / 8 : 0));
  for (uint8_t& bits : mask) bits = static_cast<uint8_t>(random.bits() | random.bits());

  esp_kd_softmax_loss_arguments host = {};
  host.rows = rows;
  host.classes = classes;
  host.student = student.host;
  host.teacher = teacher.host;
  host.bound = bound.host;
  host.labels = labels.empty() ? nullptr : labels.data();
  host.row_mask = mask.empty() ? nullptr : mask.data();
  host.ignore_index = -100;
  host.temperature = temperature;
  host.alpha = random.below(3) == 0 ? 0.9 : 0.4;
  host.beta = taught || bound.host.data != nullptr ? static_cast<double>(random.below(2)) * 0.3 : 0;

  const bool in_place = random.below(5) == 0, wanted = random.below(10) != 0;
  host.gradient_dtype = in_place ? student.host.dtype : static_cast<esp_dtype>(random.below(3));
  host.gradient_stride = in_place ? student.host.stride : classes + random.below(2) * 3;
  std::vector<uint8_t> gradient(
      in_place ? student.bytes.size()
               : static_cast<size_t>(rows * host.gradient_stride * size_of(host.gradient_dtype)),
      0xa5);

  esp_kd_softmax_loss_arguments device = host;
  const Device<uint8_t> device_student(student.bytes, student.shift * size_of(student.host.dtype));
  const Device<uint8_t> device_teacher(teacher.bytes, teacher.shift * size_of(teacher.host.dtype));
  const Device<uint8_t> device_bound(bound.bytes, bound.shift * size_of(bound.host.dtype));
  const Device<uint8_t> device_mask(mask), device_gradient(gradient);
  const Device<int64_t> device_labels(labels);
  device.student.data = device_student.get();
  device.teacher.data = device_teacher.get();
  device.bound.data = device_bound.get();
  device.labels = device_labels.get();
  device.row_mask = device_mask.get();
  device.gradient = !wanted ? nullptr : in_place ? device_student.get() : device_gradient.get();
  const std::vector<uint8_t> student_before = student.bytes;
  if (in_place) {
    gradient = student.bytes;
    host.student.data = gradient.data();
  }
  host.gradient = wanted ? gradient.data() : nullptr;
  esp_kd_softmax_loss_result expected;
  CHECK(esp_kd_softmax_loss(&host, &expected) == ESP_OK);

  int64_t bytes = 0;
  CHECK(esp_cuda_kd_softmax_loss_workspace(&device, &bytes) == ESP_OK);
  const Device<uint8_t> workspace(bytes);
  workspace.zero();
  const Device<esp_cuda_kd_softmax_loss_result> result(1);
  const Stream stream;
  const auto run = [&] {
    return esp_cuda_kd_softmax_loss(&device, workspace.get(), result.get(), stream.get());
  };
  const auto check = [&] {
    const int failed = checks_failed;
    const esp_cuda_kd_softmax_loss_result found = result.values()[0];
    const double bound_of_sum = 0x1p-53 * static_cast<double>(rows + 8);
    const auto near = [&](double a, double b) {
      return (a != a && b != b) || a == b || std::fabs(a - b) <= bound_of_sum * std::fabs(b);
    };
    CHECK(found.bad_row == -1 && found.values.rows == expected.rows && found.values.valid == expected.valid);
    CHECK(near(found.values.ce, expected.ce));
    CHECK(near(found.values.kl, expected.kl));
    CHECK(near(found.values.bound, expected.bound));
    CHECK(near(found.values.loss, expected.loss));
    if (wanted) {
      const std::vector<uint8_t> written = in_place ? device_student.values() : device_gradient.values();
      CHECK(written == gradient);
    }
    if (checks_failed > failed) {
      std::printf("  %lld rows of %lld classes, T %g, alpha %g, beta %g, %s, %s, types %d %d %d %d%s\n",
                  static_cast<long long>(rows), static_cast<long long>(classes), temperature, host.alpha,
                  host.beta, taught ? "taught" : "no teacher", labelled ? "labels" : "no labels",
                  student.host.dtype, teacher.host.dtype, bound.host.dtype, host.gradient_dtype,
                  in_place ? ", in place" : "");
      std::printf("  loss %.17g %.17g ce %.17g %.17g kl %.17g %.17g bound %.17g %.17g\n", found.values.loss,
                  expected.loss, found.values.ce, expected.ce, found.values.kl, expected.kl,
                  found.values.bound, expected.bound);
    }
  };
  CHECK(run() == ESP_OK && stream.wait());
  check();
  if (in_place) device_student.set(student_before);
  result.zero();
  CHECK(run_captured(stream, 1, run));
  check();
}

void test_bad_label() {
  for (const int64_t classes : {5, 90, 2100}) {
    const int64_t rows = 3;
    const std::vector<float> logits(static_cast<size_t>(rows * classes), 1.0f);
    const std::vector<int64_t> labels = {0, classes, -1};
    const Device<float> student(logits), gradient(logits);
    const Device<int64_t> device_labels(labels);
    esp_kd_softmax_loss_arguments a = {};
    a.rows = rows;
    a.classes = classes;
    a.student = {student.get(), classes, ESP_F32};
    a.labels = device_labels.get();
    a.gradient = gradient.get();
    a.gradient_stride = classes;
    a.ignore_index = -100;
    a.temperature = 1;
    a.alpha = 1;
    int64_t bytes = 0;
    CHECK(esp_cuda_kd_softmax_loss_workspace(&a, &bytes) == ESP_OK);
    const Device<uint8_t> workspace(bytes);
    workspace.zero();
    const Device<esp_cuda_kd_softmax_loss_result> result(1);
    const auto run = [&] {
      CHECK(esp_cuda_kd_softmax_loss(&a, workspace.get(), result.get(), nullptr) == ESP_OK);
      return result.values()[0];
    };
    const esp_cuda_kd_softmax_loss_result bad = run();
    CHECK(bad.bad_row == 1 && bad.values.loss == 0 && bad.values.rows == 0);
    CHECK(gradient.values() == logits);
    device_labels.set({0, -100, 1});
    const esp_cuda_kd_softmax_loss_result good = run();
    CHECK(good.bad_row == -1 && good.values.valid == 2 &&
          std::fabs(good.values.ce - std::log(static_cast<double>(classes))) < 1e-6);
    CHECK(gradient.values() != logits);
  }
}

void test(const Setting& setting) {
  Random random(setting.seed);
  const double temperatures[] = {1, 2, 4, 3.5, 0.7};
  const int64_t narrow[] = {1, 2, 3, 10, 33, 63, 64};
  for (const int64_t classes : narrow) {
    compare(1 + random.below(setting.small ? 20 : 150), classes, temperatures[random.below(5)], Rows::usual,
            random);
  }
  compare(70, 10, 2, Rows::strange, random);
  const int64_t wide[] = {65, 255, 300, 1000, 2047, 2048};
  for (const int64_t classes : wide) {
    if (setting.small && classes > 300) continue;
    compare(1 + random.below(5), classes, temperatures[random.below(5)], Rows::usual, random);
  }
  compare(6, 65 + random.below(50), 2, Rows::strange, random);
  const int64_t long_rows[] = {2049, 4500, 6144};
  for (const int64_t classes : long_rows) {
    if (setting.small && classes > 2049) continue;
    compare(setting.small ? 1 : 1 + random.below(3), classes, temperatures[random.below(5)], Rows::usual,
            random);
  }
  if (!setting.small) compare(3, 2300, temperatures[random.below(5)], Rows::strange, random);
  compare(0, 10, 1, Rows::usual, random);
  compare(0, 5000, 1, Rows::usual, random);
  test_bad_label();
}

void test_refusals() {
  int64_t bytes;
  esp_kd_softmax_loss_arguments a = {};
  CHECK(esp_cuda_kd_softmax_loss_workspace(nullptr, &bytes) == ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_kd_softmax_loss_workspace(&a, &bytes) == ESP_INVALID_ARGUMENT);
  a.classes = 10;
  a.temperature = 1;
  CHECK(esp_cuda_kd_softmax_loss_workspace(&a, &bytes) == ESP_OK && bytes > 0);
  CHECK(esp_cuda_kd_softmax_loss_workspace(&a, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_kd_softmax_loss(&a, nullptr, nullptr, nullptr) == ESP_INVALID_ARGUMENT);
  a.alpha = 2;
  CHECK(esp_cuda_kd_softmax_loss_workspace(&a, &bytes) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_cuda_last_error(), "alpha 2") != nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  test_refusals();
  return run_tests(argc, argv, test);
}
