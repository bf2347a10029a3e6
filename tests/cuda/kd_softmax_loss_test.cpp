// kd_softmax_loss on a device gives the gradient of the CPU bit for bit, and parts of the loss that differ by
// the order of one sum; rows of 16-bit logits of more than 2048 classes, which it holds in shared memory,
// within the bounds of its header. Classes around 64 (a quarter row a thread), 256 (a sub-block of sums),
// 2048 (a segment, a block) and beyond; every way to share exponentials (T = 1, 2, 4, other); absent parts;
// masks, strides, types, in place; rows far from 0, far apart, infinite, NaN; clusters of 1 to 8 blocks, and
// devices whose shared memory holds only part of a row.
#include "espalier/cuda/kd_softmax_loss.h"

#include <cmath>

#include "device_test.h"
#include "kd_softmax_loss.h"

namespace {

using namespace esp_test;

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

float get(const std::vector<uint8_t>& bytes, int64_t i, esp_dtype dtype) {
  if (dtype == ESP_F32) {
    float x;
    std::memcpy(&x, bytes.data() + 4 * i, 4);
    return x;
  }
  uint16_t half;
  std::memcpy(&half, bytes.data() + 2 * i, 2);
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
  uint32_t word = static_cast<uint32_t>(half) << 16;
  if (dtype == ESP_F16) {
    const float x =
        magnitude >= 0x7c00
            ? (magnitude == 0x7c00 ? INFINITY : NAN)
            : std::ldexp(static_cast<float>(magnitude & 0x3ff) + (magnitude >= 0x400 ? 1024.0f : 0.0f),
                         static_cast<int>(magnitude >= 0x400 ? magnitude >> 10 : 1) - 25);
    std::memcpy(&word, &x, 4);
    word |= sign;
  }
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

struct Logits {
  std::vector<uint8_t> bytes;
  esp_logits host = {nullptr, 0, ESP_F32};
  int64_t shift = 0;
  Logits() = default;
  // Of that type, or of any where it is negative.
  Logits(int64_t rows, int64_t classes, float spread, bool repeated, int type, Random& random) {
    host.dtype = static_cast<esp_dtype>(type < 0 ? random.below(3) : type);
    host.stride = repeated ? 0 : classes + (random.below(3) == 0 ? 1 + random.below(5) : 0);
    const int64_t n = repeated ? classes : (rows > 0 ? (rows - 1) * host.stride + classes : 0);
    bytes.resize(static_cast<size_t>(n * size_of(host.dtype)));
    for (int64_t i = 0; i < n; i++) put(bytes, i, host.dtype, random.uniform() * spread);
    shift = random.below(4) == 0 ? 1 + random.below(3) : 0;
    host.data = bytes.data();
  }
};

enum class Rows { usual, strange };

// What the device may be off by where it holds rows in shared memory.
struct Bounds {
  std::vector<double> gradient;  // of each element, before it is rounded
  double ce = 0, kl = 0, bound = 0;
};
// Probabilities of a row at a temperature, 0 where there are none.
std::vector<double> softmax(const Logits& logits, int64_t row, int64_t classes, double temperature) {
  std::vector<double> p(static_cast<size_t>(classes));
  double largest = -INFINITY, sum = 0;
  for (int64_t c = 0; c < classes; c++) {
    p[static_cast<size_t>(c)] = get(logits.bytes, row * logits.host.stride + c, logits.host.dtype);
    largest = std::fmax(largest, p[static_cast<size_t>(c)]);
  }
  for (double& x : p) sum += x = std::exp((x - largest) / temperature);
  for (double& x : p) x = std::isfinite(x / sum) ? x / sum : 0;
  return p;
}
Bounds bounds_of(const esp_kd_softmax_loss_arguments& a, const Logits& student, const Logits& teacher,
                 const esp_kd_softmax_loss_result& expected) {
  Bounds b;
  const bool taught = a.teacher.data != nullptr;
  const double rows = static_cast<double>(expected.rows > 0 ? expected.rows : 1),
               valid = static_cast<double>(expected.valid > 0 ? expected.valid : 1);
  const double power = a.temperature == 2 || a.temperature == 4 ? a.temperature : 1,
               t = taught ? a.temperature : 1;
  const double soft = taught ? (1 - a.alpha) * t / rows : 0,
               hard = expected.valid > 0 ? power * a.alpha / valid : 0;
  double apart = 0;
  for (int64_t row = 0; row < a.rows; row++) {
    const std::vector<double> p = softmax(student, row, a.classes, t),
                              h = softmax(student, row, a.classes, 1);
    const std::vector<double> q = taught ? softmax(teacher, row, a.classes, t) : p;
    for (size_t c = 0; c < p.size(); c++) {
      const float s =
          get(student.bytes, row * student.host.stride + static_cast<int64_t>(c), student.host.dtype);
      const float w =
          taught ? get(teacher.bytes, row * teacher.host.stride + static_cast<int64_t>(c), teacher.host.dtype)
                 : s;
      if (std::isfinite(s) && std::isfinite(w)) apart = std::fmax(apart, std::fabs(w - s) / t);
      const double excess = a.beta > 0 && s > w ? 2 * a.beta * (s - w) / rows : 0;
      b.gradient.push_back(0x1p-16 * (soft * (p[c] + q[c]) + hard * h[c]) + 0x1p-22 * excess + 0x1p-126);
    }
  }
  b.ce = 0x1p-16 * power;
  b.kl = 0x1p-16 * t * t * (1 + apart);
  b.bound = 0x1p-18;
  return b;
}
bool near(double a, double b, double error) {
  return (a != a && b != b) || a == b || std::fabs(a - b) <= error;
}

// One call on both sides. `type` of the logits and of the gradient: any where it is negative.
void compare(int64_t rows, int64_t classes, double temperature, Rows kind, Random& random, int type = -1) {
  const float spread = random.below(3) == 0 ? 30.0f : 4.0f;
  Logits student(rows, classes, spread, false, type, random), teacher, bound;
  const bool taught = random.below(4) != 0, labelled = random.below(4) != 0;
  if (taught) teacher = Logits(rows, classes, spread, rows > 1 && random.below(6) == 0, type, random);
  if (type < 0 && random.below(2) == 0)
    bound = Logits(rows, classes, spread, random.below(3) == 0, type, random);
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
  host.gradient_dtype = in_place || type >= 0 ? student.host.dtype : static_cast<esp_dtype>(random.below(3));
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
  const bool bounded = host.beta > 0 && bound.host.data != nullptr;
  const bool held = classes > 2048 && student.host.dtype != ESP_F32 && !bounded &&
                    (!taught || teacher.host.dtype == student.host.dtype) &&
                    (!wanted || host.gradient_dtype == student.host.dtype);
  Bounds bounds;
  std::vector<float> exact;  // the gradient before it is rounded
  if (held) {
    Logits before = student;
    before.bytes = student_before;
    bounds = bounds_of(host, before, teacher, expected);
    exact.resize(static_cast<size_t>(rows * classes));
    esp_kd_softmax_loss_arguments unrounded = host;
    unrounded.student.data = student_before.data();
    unrounded.gradient = exact.data();
    unrounded.gradient_dtype = ESP_F32;
    unrounded.gradient_stride = classes;
    esp_kd_softmax_loss_result same;
    CHECK(esp_kd_softmax_loss(&unrounded, &same) == ESP_OK);
  }

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
    const double order = 0x1p-53 * static_cast<double>(rows + 8);
    const auto close = [&](double a, double b, double error) {
      return near(a, b, error + order * std::fabs(b));
    };
    CHECK(found.bad_row == -1 && found.values.rows == expected.rows && found.values.valid == expected.valid);
    CHECK(close(found.values.ce, expected.ce, bounds.ce));
    CHECK(close(found.values.kl, expected.kl, bounds.kl));
    CHECK(close(found.values.bound, expected.bound, bounds.bound * expected.bound));
    CHECK(close(
        found.values.loss, expected.loss,
        host.alpha * bounds.ce + (1 - host.alpha) * bounds.kl + host.beta * bounds.bound * expected.bound));
    if (wanted) {
      const std::vector<uint8_t> written = in_place ? device_student.values() : device_gradient.values();
      if (!held) CHECK(written == gradient);
      int64_t wrong = 0;
      std::vector<uint8_t> rest = written;  // what lies between the rows
      for (int64_t row = 0; held && row < rows; row++) {
        for (int64_t c = 0; c < classes; c++) {
          const int64_t at = row * host.gradient_stride + c;
          const double g = get(written, at, host.gradient_dtype),
                       x = exact[static_cast<size_t>(row * classes + c)],
                       error = bounds.gradient[static_cast<size_t>(row * classes + c)];
          // Half a unit of the last place: 8 bits of BF16, 11 of F16 and its subnormal numbers.
          const double rounding = host.gradient_dtype == ESP_BF16
                                      ? 0x1p-8 * std::fabs(x) + 0x1p-134
                                      : std::fmax(0x1p-11 * std::fabs(x), 0x1p-25);
          if (!near(g, x, error + rounding * (1 + 0x1p-8)) && ++wrong == 1)
            std::printf("  row %lld class %lld: %g, not %g within %g\n", static_cast<long long>(row),
                        static_cast<long long>(c), g, x, error + rounding);
          put(rest, at, host.gradient_dtype, 0);
        }
      }
      CHECK(wrong == 0);
      for (int64_t row = 0; held && row < rows; row++) {
        for (int64_t c = 0; c < classes; c++)
          put(gradient, row * host.gradient_stride + c, host.gradient_dtype, 0);
      }
      if (held) CHECK(rest == gradient);
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
  const auto written = [&] { return in_place ? device_student.values() : device_gradient.values(); };
  const std::vector<uint8_t> first = written();
  const esp_cuda_kd_softmax_loss_result first_result = result.values()[0];
  if (in_place) device_student.set(student_before);
  result.zero();
  CHECK(run_captured(stream, 1, run));
  check();
  const esp_cuda_kd_softmax_loss_result again = result.values()[0];
  CHECK(written() == first && std::memcmp(&again, &first_result, sizeof again) == 0);
}

#if !defined(ESP_ON_GPU)  // the CUDA library hides its planning
// The arithmetic of where rows lie, for sizes that no test could compute.
void test_hold() {
  const auto hold = [](int64_t classes, bool taught, int64_t shared, bool clusters) {
    esp_kd_softmax_loss_arguments a = {};
    a.rows = 1;
    a.classes = classes;
    a.student = {&a, classes, ESP_BF16};
    if (taught) a.teacher = a.student;
    return esp::kd_hold(a, {shared, clusters});
  };
  const int64_t h200 = 228 << 10;
  const esp::KdHold none = hold(2048, true, h200, true), small = hold(2049, true, h200, true),
                    words = hold(32000, true, h200, true), large = hold(131072, true, h200, true),
                    largest = hold(262144, true, h200, true), alone = hold(131072, true, h200, false),
                    untaught = hold(32000, false, h200, true);
  CHECK(none.blocks == 0);
  CHECK(small.blocks == 1 && small.share == 2056 && small.layers == 2 && small.held == 2);
  // A third of the multiprocessor each, and nothing read twice: the sizes that are measured.
  CHECK(words.blocks == 2 && words.share == 16000 && words.layers == 8 && words.held == 8);
  // One limit for all rows: it is the kernel's, and another thread may be about to launch with more.
  CHECK(words.shared_bytes == 64 << 10 && words.most_bytes == 72 << 10 && largest.most_bytes == 72 << 10);
  CHECK(large.blocks == 8 && large.share == 16384 && large.held == large.layers);
  CHECK(largest.blocks == 8 && largest.held == 9 && largest.layers == 16);
  CHECK(alone.blocks == 1 && alone.held == 9 && alone.layers == 64 && alone.share == 131072);
  CHECK(untaught.blocks == 1 && untaught.held == 16 && untaught.layers == 16);
  CHECK(hold(int64_t{1} << 31, true, h200, true).blocks == 0);
  for (const int64_t shared : {64 << 10, 100 << 10, 164 << 10, 228 << 10}) {
    for (int64_t classes = 2049; classes < 600000; classes += 1 + classes / 7) {
      for (const bool clusters : {false, true}) {
        const esp::KdHold h = hold(classes, true, shared, clusters);
        CHECK(h.share % esp::kd_pack == 0 && h.share * h.blocks >= classes &&
              h.share * (h.blocks - 1) < classes);
        CHECK(h.layers * int64_t{2048} >= h.share && (h.layers - 1) * int64_t{2048} < h.share);
        CHECK(h.held >= 1 && h.held <= h.layers && h.shared_bytes <= h.most_bytes &&
              3 * (h.most_bytes + 2048) <= shared);
        CHECK(clusters || h.blocks == 1);
      }
    }
  }
}
#endif

#if !defined(ESP_ON_GPU)
// The last of 65536 rows of 33000 classes, where indices need 64 bits: held, and in the way of the CPU. N is
// a power of two, so the gradient is a shift of that of one row.
void test_far(esp_dtype dtype) {
  constexpr int64_t rows = 65536, classes = 33000, start = (rows - 1) * classes;
  const int64_t size = size_of(dtype);
  const Sparse<uint8_t> student(rows * classes * size), teacher(rows * classes * size),
      gradient(rows * classes * size);
  if (checks_failed > 0) return;
  Random random(5);
  const Logits s(1, classes, 4, false, dtype, random), t(1, classes, 4, false, dtype, random);
  std::memcpy(student.get() + start * size, s.bytes.data(), static_cast<size_t>(classes * size));
  std::memcpy(teacher.get() + start * size, t.bytes.data(), static_cast<size_t>(classes * size));
  std::vector<float> expected(static_cast<size_t>(classes));
  esp_kd_softmax_loss_arguments a = {};
  a.rows = 1;
  a.classes = classes;
  a.student = {s.bytes.data(), classes, dtype};
  a.teacher = {t.bytes.data(), classes, dtype};
  a.gradient = expected.data();
  a.gradient_stride = classes;
  a.gradient_dtype = ESP_F32;
  a.temperature = 2;
  esp_kd_softmax_loss_result loss;
  CHECK(esp_kd_softmax_loss(&a, &loss) == ESP_OK);
  const Bounds bounds = bounds_of(a, s, t, loss);
  a.rows = rows;
  a.student.data = student.get();
  a.teacher.data = teacher.get();
  a.gradient = gradient.get();
  a.gradient_dtype = dtype;
  int64_t bytes = 0;
  CHECK(esp_cuda_kd_softmax_loss_workspace(&a, &bytes) == ESP_OK);
  const Sparse<uint8_t> workspace(bytes);
  const Device<esp_cuda_kd_softmax_loss_result> result(1);
  const int64_t blocks =
      dtype == ESP_F32 ? (classes - 1) / esp::kd_segment + 1 : esp::kd_hold(a, {228 << 10, true}).blocks;
  emulator::options.first_block = (rows - 1) * blocks;
  CHECK(esp_cuda_kd_softmax_loss(&a, workspace.get(), result.get(), nullptr) == ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  emulator::options.first_block = 0;
  int64_t wrong = 0;
  const std::vector<uint8_t> row(gradient.get() + start * size, gradient.get() + (start + classes) * size);
  for (int64_t c = 0; c < classes; c++) {
    const size_t at = static_cast<size_t>(c);
    const double g = static_cast<double>(get(row, c, dtype)) * rows, x = expected[at];
    wrong += near(g, x, dtype == ESP_F32 ? 0 : bounds.gradient[at] + 0x1.01p-8 * std::fabs(x)) ? 0 : 1;
  }
  CHECK(wrong == 0);
}
#endif

// Classes whose rows the device holds: of each type, over clusters of every size.
void test_held(const Setting& setting, Random& random) {
#if !defined(ESP_ON_GPU)
  // Room for 9, 2, 1 layers of 2048 columns with a teacher; without clusters only a part of the row fits, 6 layers or 2.
  const struct {
    int shared, major;
  } devices[] = {{228 << 10, 9}, {60 << 10, 9}, {49 << 10, 9}, {60 << 10, 8}, {164 << 10, 8}};
  const auto& device = devices[setting.seed % 5];
  emulator::options.shared_per_multiprocessor = device.shared;
  emulator::options.major = device.major;
#endif
  const double temperatures[] = {1, 2, 4, 3.5};
  const auto one = [&](int64_t rows, int64_t classes, Rows kind) {
    compare(rows, classes, temperatures[random.below(4)], kind, random,
            1 + static_cast<int>(random.below(2)));
  };
  if (setting.small) {
    one(1, 4100, Rows::usual);
  } else {
    for (const int64_t classes : {2049, 4096, 6144, 9001}) one(1 + random.below(3), classes, Rows::usual);
    one(4, 5000, Rows::strange);
    one(1, 15000, Rows::usual);
    one(1, 12000, Rows::usual);  // 48 KiB of a block that may have 72
  }
#if !defined(ESP_ON_GPU)
  emulator::options.shared_per_multiprocessor = 228 << 10;
  emulator::options.major = 9;
#endif
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
  test_held(setting, random);
#if !defined(ESP_ON_GPU)
  if (setting.seed == 1 && !setting.small) {
    test_far(ESP_BF16);
    test_far(ESP_F32);
  }
#endif
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
#if !defined(ESP_ON_GPU)
  test_hold();
#endif
  return run_tests(argc, argv, test);
}
