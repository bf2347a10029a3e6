// fake_quantize on a device gives the CPU's bits. Shapes are those of each way through the kernels: channels
// in the registers of a warp (up to 512 or 1024 elements), of a block (4096, 8192), of a block with more
// (8192, 16384) and beyond; rows whose gate shares bytes; channels along the last axis (columns), in the
// middle, and one for all; unaligned starts; NaN and infinities.
#include "espalier/cuda/fake_quantize.h"

#include <sys/mman.h>

#include <cmath>

#include "fake_quantize_subjects.h"

namespace {

using namespace esp_test;

// One tensor, its outputs and its scales, on both sides.
struct Subject {
  Subject(const esp_quantizer& quantizer, const Shape& shape, esp_dtype dtype, Random& random)
      : n(shape.outer * shape.channels * shape.inner), x(static_cast<size_t>(n * size_of(dtype))) {
    for (int64_t i = 0; i < n; i++) put(x, i, dtype, random.uniform() * (i % 5 == 0 ? 4.0f : 0.5f));
    put_odd(x, n, dtype, random);
    const bool wide = random.below(2) == 0;
    host = shaped<esp_quantized>(shape, dtype);
    host.y_dtype = wide ? ESP_F32 : dtype;
    const int64_t wanted = random.below(8);  // bits: y, q, gate
    if ((wanted & 1) != 0) y.resize(static_cast<size_t>(n * size_of(host.y_dtype)), 0xa5);
    if ((wanted & 2) != 0) q.resize(static_cast<size_t>(n), 0xa5);
    if ((wanted & 4) != 0) gate.resize(static_cast<size_t>((n + 7) / 8), 0xa5);
    const size_t channels = static_cast<size_t>(shape.channels);
    const int32_t span = quantizer.qmax - quantizer.qmin;
    for (size_t c = 0; c < channels; c++) {
      scale.push_back(std::fabs(random.uniform()) * 0.05f + 1e-3f);
      zero_point.push_back(quantizer.qmin + static_cast<int32_t>(random.below(span + 1)));
      running.push_back(random.below(2) == 0 ? INFINITY : random.uniform() - 1.5f);
    }
    for (size_t c = 0; c < channels; c++)
      running.push_back(std::isinf(running[c]) ? -INFINITY : running[c] + 3.0f);
    if (quantizer.symmetric != 0 && random.below(2) == 0 && quantizer.qmin <= 0) zero_point.clear();
    shift = random.below(3) == 0 ? 1 + random.below(7) : 0;
  }
  esp_quantized on_host() {
    esp_quantized t = host;
    t.x = x.data();
    t.y = y.empty() ? nullptr : y.data();
    t.q = q.empty() ? nullptr : q.data();
    t.gate = gate.empty() ? nullptr : gate.data();
    t.scale = scale.data();
    t.zero_point = zero_point.empty() ? nullptr : zero_point.data();
    t.running = running.data();
    return t;
  }

  int64_t n, shift;
  std::vector<uint8_t> x, y, q, gate;
  std::vector<float> scale, running;
  std::vector<int32_t> zero_point;
  esp_quantized host;
};

struct OnDevice {
  explicit OnDevice(const Subject& s)
      : x(s.x, s.shift * size_of(s.host.dtype)),
        y(s.y, s.shift * size_of(s.host.y_dtype)),
        q(s.q, s.shift),
        gate(s.gate, s.shift),
        scale(s.scale),
        running(s.running),
        zero_point(s.zero_point),
        tensor(s.host) {
    tensor.x = x.get();
    tensor.y = y.get();
    tensor.q = q.get();
    tensor.gate = gate.get();
    tensor.scale = scale.get();
    tensor.zero_point = zero_point.get();
    tensor.running = running.get();
  }
  void restore(const Subject& s) const {
    scale.set(s.scale);
    running.set(s.running);
  }
  Device<uint8_t> x, y, q, gate;
  Device<float> scale, running;
  Device<int32_t> zero_point;
  esp_quantized tensor;
};

void compare(const esp_quantizer& quantizer, std::vector<Subject>& subjects) {
  std::vector<OnDevice> memory;
  std::vector<esp_quantized> device, host;
  memory.reserve(subjects.size());
  for (Subject& subject : subjects) {
    memory.emplace_back(subject);
    device.push_back(memory.back().tensor);
  }
  const std::vector<Subject> before = subjects;
  for (Subject& subject : subjects) host.push_back(subject.on_host());
  const int64_t count = static_cast<int64_t>(subjects.size());
  CHECK(esp_fake_quantize(&quantizer, host.data(), count) == ESP_OK);

  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fake_quantize_plan(&quantizer, device.data(), count, plan, table);
  });
  const Device<esp_cuda_quantize_result> results(count);
  const Stream stream;
  const auto run = [&] {
    return esp_cuda_fake_quantize(&planned.plan, planned.table(), planned.workspace(), results.get(),
                                  stream.get());
  };
  const auto check = [&] {
    const std::vector<esp_cuda_quantize_result> found = results.values();
    for (size_t t = 0; t < subjects.size(); t++) {
      const int failed = checks_failed;
      CHECK(found[t].nan == host[t].nan && found[t].infinite == host[t].infinite &&
            found[t].bad_channel == -1);
      CHECK(same(memory[t].scale.values(), subjects[t].scale));
      CHECK(same(memory[t].zero_point.values(), subjects[t].zero_point));
      CHECK(same(memory[t].running.values(), subjects[t].running));
      CHECK(same(memory[t].y.values(), subjects[t].y));
      CHECK(same(memory[t].q.values(), subjects[t].q));
      CHECK(same(memory[t].gate.values(), subjects[t].gate));
      if (checks_failed > failed) {
        std::printf("observer %d\n", quantizer.observer);
        print(host[t], subjects[t].shift);
      }
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

esp_quantizer quantizer_of(int32_t observer, Random& random) {
  esp_quantizer q = grid_of(observer, random);
  q.divisor += random.below(2) == 0 ? 0.0f : 0.5f;
  q.average = 0.1f;
  return q;
}

// What is in place is read before it is written.
void test_in_place(Random& random) {
  for (const int32_t observer : {ESP_OBSERVER_NONE, ESP_OBSERVER_MIN_MAX}) {
    const esp_quantizer quantizer = quantizer_of(observer, random);
    Subject subject(quantizer, {1, 3, 700}, ESP_F32, random);
    subject.q.clear();
    subject.gate.clear();
    subject.y.clear();
    OnDevice memory(subject);
    esp_quantized host = subject.on_host(), device = memory.tensor;
    host.y = subject.x.data();
    device.y = memory.x.get();
    host.y_dtype = device.y_dtype = ESP_F32;
    const Planned planned([&](esp_cuda_plan* plan, void* table) {
      return esp_cuda_fake_quantize_plan(&quantizer, &device, 1, plan, table);
    });
    const Device<esp_cuda_quantize_result> results(1);
    CHECK(esp_fake_quantize(&quantizer, &host, 1) == ESP_OK);
    CHECK(esp_cuda_fake_quantize(&planned.plan, planned.table(), planned.workspace(), results.get(),
                                 nullptr) == ESP_OK);
    CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
    CHECK(same(memory.x.values(), subject.x));
  }
}

void test_unusable(Random& random) {
  for (const Shape& shape : {Shape{1, 40, 24}, Shape{2, 40, 24}}) {
    esp_quantizer quantizer = quantizer_of(ESP_OBSERVER_MIN_MAX, random);
    Subject subject(quantizer, shape, ESP_F32, random);
    for (int64_t o = 0; o < shape.outer; o++) {
      for (const int64_t channel : {33, 7, 20}) {
        for (int64_t i = 0; i < shape.inner; i++)
          put(subject.x, (o * shape.channels + channel) * shape.inner + i, ESP_F32, 1e-45f);
      }
    }
    OnDevice memory(subject);
    const Device<esp_cuda_quantize_result> results(1);
    const auto bad_channel = [&] {
      const Planned planned([&](esp_cuda_plan* plan, void* table) {
        return esp_cuda_fake_quantize_plan(&quantizer, &memory.tensor, 1, plan, table);
      });
      CHECK(esp_cuda_fake_quantize(&planned.plan, planned.table(), planned.workspace(), results.get(),
                                   nullptr) == ESP_OK);
      return results.values()[0].bad_channel;
    };
    CHECK(bad_channel() == 7);
    quantizer.observer = ESP_OBSERVER_NONE;
    subject.scale[11] = 0;
    subject.scale[12] = NAN;
    memory.restore(subject);
    CHECK(bad_channel() == 11);
  }
}

// Ranges of one call are not those of the next.
void test_smaller(Random& random) {
  for (const Shape& shape : {Shape{2, 3, 20}, Shape{40, 5, 1}}) {
    const esp_quantizer quantizer = quantizer_of(ESP_OBSERVER_MIN_MAX, random);
    Subject subject(quantizer, shape, ESP_F32, random);
    OnDevice memory(subject);
    const Planned planned([&](esp_cuda_plan* plan, void* table) {
      return esp_cuda_fake_quantize_plan(&quantizer, &memory.tensor, 1, plan, table);
    });
    const Device<esp_cuda_quantize_result> results(1);
    for (const float size : {1.0f, 0.25f}) {
      for (int64_t i = 0; i < subject.n; i++) put(subject.x, i, ESP_F32, random.uniform() * size);
      memory.x.set(subject.x);
      esp_quantized host = subject.on_host();
      CHECK(esp_fake_quantize(&quantizer, &host, 1) == ESP_OK);
      CHECK(esp_cuda_fake_quantize(&planned.plan, planned.table(), planned.workspace(), results.get(),
                                   nullptr) == ESP_OK);
      CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
      CHECK(same(memory.scale.values(), subject.scale));
      CHECK(same(memory.zero_point.values(), subject.zero_point));
    }
  }
}

void test_backward(const Setting& setting, Random& random) {
  for (const int64_t n :
       {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{1031}, int64_t{setting.small ? 900 : 8192 * 2 + 5}}) {
    for (const esp_dtype dtype : {ESP_F32, ESP_BF16, ESP_F16}) {
      std::vector<uint8_t> in(static_cast<size_t>(n * size_of(dtype))),
          out = in, gate(static_cast<size_t>((n + 7) / 8));
      for (uint8_t& byte : in) byte = static_cast<uint8_t>(random.bits());
      for (int64_t i = 0; i < n; i++) put(in, i, dtype, random.uniform());
      for (uint8_t& byte : gate) byte = static_cast<uint8_t>(random.bits());
      CHECK(esp_fake_quantize_backward(in.data(), gate.data(), out.data(), n, dtype) == ESP_OK);
      const int64_t shift = random.below(2) * size_of(dtype);
      const Device<uint8_t> device_in(in, shift), device_gate(gate, random.below(4)),
          device_out(static_cast<int64_t>(in.size()));
      CHECK(esp_cuda_fake_quantize_backward(device_in.get(), device_gate.get(), device_out.get(), n, dtype,
                                            nullptr) == ESP_OK);
      CHECK(same(device_out.values(), out));
      CHECK(esp_cuda_fake_quantize_backward(device_in.get(), device_gate.get(), device_in.get(), n, dtype,
                                            nullptr) == ESP_OK);
      CHECK(same(device_in.values(), out));
    }
  }
}

void test_dequantize(Random& random) {
  for (const Shape& shape : {Shape{2, 3, 67}, Shape{31, 9, 1}, Shape{1, 1, 8200}}) {
    for (const esp_dtype dtype : {ESP_F32, ESP_BF16, ESP_F16}) {
      const int64_t n = shape.outer * shape.channels * shape.inner;
      std::vector<uint8_t> q(static_cast<size_t>(n)), y(static_cast<size_t>(n * size_of(dtype)));
      std::vector<float> scale;
      std::vector<int32_t> zero_point;
      for (uint8_t& byte : q) byte = static_cast<uint8_t>(random.bits());
      for (int64_t c = 0; c < shape.channels; c++) {
        scale.push_back(0.01f + static_cast<float>(c));
        zero_point.push_back(static_cast<int32_t>(random.below(100)));
      }
      const int32_t is_signed = static_cast<int32_t>(random.below(2));
      esp_dequantized t = {q.data(),       y.data(),    scale.data(), zero_point.data(), shape.outer,
                           shape.channels, shape.inner, dtype,        is_signed};
      CHECK(esp_dequantize(&t) == ESP_OK);
      const Device<uint8_t> device_q(q, random.below(3)), device_y(static_cast<int64_t>(y.size()));
      const Device<float> device_scale(scale);
      const Device<int32_t> device_zero(zero_point);
      t.q = device_q.get();
      t.y = device_y.get();
      t.scale = device_scale.get();
      t.zero_point = device_zero.get();
      CHECK(esp_cuda_dequantize(&t, nullptr) == ESP_OK);
      CHECK(same(device_y.values(), y));
    }
  }
}

#if !defined(ESP_ON_GPU)
// The end of a tensor of more than 2^32 bytes and 2^31 elements; nothing but that end is ever touched.
void test_far() {
  const int64_t n = 3000000007, bytes = n * 2;
  const auto reserve = [](int64_t size) {
    return static_cast<uint8_t*>(mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  };
  uint8_t* const in = reserve(bytes);
  uint8_t* const out = reserve(bytes);
  uint8_t* const gate = reserve(n);
  CHECK(in != MAP_FAILED && out != MAP_FAILED && gate != MAP_FAILED);
  in[bytes - 2] = 0x80;
  in[bytes - 1] = 0x3f;  // 1
  gate[n / 8] = 0xff;
  emulator::options.first_block = n / 8192;
  CHECK(esp_cuda_fake_quantize_backward(in, gate, out, n, ESP_BF16, nullptr) == ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  CHECK(out[bytes - 2] == 0x80 && out[bytes - 1] == 0x3f && out[bytes - 3] == 0);
  const float scale = 0.5f;
  gate[n - 1] = 6;
  const esp_dequantized t = {gate, out, &scale, nullptr, 1, 1, n, ESP_BF16, 1};
  CHECK(esp_cuda_dequantize(&t, nullptr) == ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  CHECK(out[bytes - 2] == 0x40 && out[bytes - 1] == 0x40);  // 3
  // Channels of more than 2^29 elements that meet beyond the 2^31st, in the middle of a chunk: the last
  // element of one, the first of the other.
  const int64_t inner = n / 4, meet = 3 * inner * 2;
  const std::vector<float> scales = {1.0f, 1.0f, 0.25f, 0.5f};
  const Device<float> device_scales(scales);
  const esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, ESP_OBSERVER_NONE, 1, 127, 0, 0, 0, 0};
  esp_quantized far = {};
  far.x = in;
  far.y = out;
  far.scale = device_scales.get();
  far.outer = 1;
  far.channels = 4;
  far.inner = inner;
  far.dtype = far.y_dtype = ESP_BF16;
  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fake_quantize_plan(&quantizer, &far, 1, plan, table);
  });
  const Device<esp_cuda_quantize_result> results(1);
  for (const int64_t at : {meet - 2, meet}) {
    in[at] = 0x30;
    in[at + 1] = 0x3f;  // 0.6875: 3 quarters, or 1 half
  }
  emulator::options.multiprocessors = 1 << 28;  // a block for each part
  emulator::options.first_block = meet / 2 / 8192;
  emulator::options.last_block = meet / 2 / 8192 + 1;
  CHECK(esp_cuda_fake_quantize(&planned.plan, planned.table(), planned.workspace(), results.get(), nullptr) ==
        ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  CHECK(out[meet - 2] == 0x40 && out[meet - 1] == 0x3f);  // 0.75
  CHECK(out[meet] == 0x00 && out[meet + 1] == 0x3f);      // 0.5
  emulator::options.last_block = -1;
  emulator::options.first_block = 0;
  emulator::options.multiprocessors = 1;
  munmap(in, static_cast<size_t>(bytes));
  munmap(out, static_cast<size_t>(bytes));
  munmap(gate, static_cast<size_t>(n));
}
#endif

void test(const Setting& setting) {
  Random random(setting.seed);
  const Shape small[] = {{1, 9, 8}, {1, 3, 17}, {1, 2, 600}, {1, 1, 33}, {3, 5, 24}, {20, 7, 1},
                         {9, 4, 3}, {2, 0, 5},  {0, 3, 2},   {1, 1, 1},  {4, 1, 40}, {2, 3, 19}};
  const Shape large[] = {{1, 2, 1500}, {1, 1, 8190}, {1, 2, 4104}, {1, 1, 16400},
                         {2, 2, 2100}, {300, 33, 1}, {3, 1100, 1}, {70, 3, 15}};
  for (const int32_t observer : {ESP_OBSERVER_NONE, ESP_OBSERVER_MIN_MAX, ESP_OBSERVER_MOVING_AVERAGE}) {
    const esp_quantizer quantizer = quantizer_of(observer, random);
    std::vector<Subject> subjects;
    add_subjects(subjects, quantizer, small, false, random);
    if (!setting.small) add_subjects(subjects, quantizer, large, true, random);
    compare(quantizer, subjects);
  }
  std::vector<Subject> none;
  compare(quantizer_of(ESP_OBSERVER_NONE, random), none);
  test_in_place(random);
  test_unusable(random);
  test_smaller(random);
  if (setting.seed % 3 == 1) {
    test_backward(setting, random);
    test_dequantize(random);
  }
#if !defined(ESP_ON_GPU)
  if (setting.seed == 1 && !setting.small) test_far();
#endif
}

void test_refusals() {
  esp_cuda_plan plan;
  esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, ESP_OBSERVER_MSE, 1, 127, 0, 10, 0.5f, 0};
  esp_quantized tensor = {};
  CHECK(esp_cuda_fake_quantize_plan(&quantizer, &tensor, 0, &plan, nullptr) == ESP_UNSUPPORTED);
  quantizer.observer = ESP_OBSERVER_MIN_MAX;
  CHECK(esp_cuda_fake_quantize_plan(&quantizer, &tensor, 1, nullptr, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_fake_quantize_plan(nullptr, &tensor, 1, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  tensor.outer = tensor.channels = tensor.inner = 2;
  CHECK(esp_cuda_fake_quantize_plan(&quantizer, &tensor, 1, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_cuda_last_error(), "tensor 0 is NULL") != nullptr);
  tensor.x = &tensor;
  CHECK(esp_cuda_fake_quantize_plan(&quantizer, &tensor, 1, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_cuda_last_error(), "scales of tensor 0 are NULL") != nullptr);
  CHECK(esp_cuda_fake_quantize_backward(&tensor, nullptr, &tensor, 5, ESP_F32, nullptr) ==
        ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_dequantize(nullptr, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_fake_quantize(&plan, nullptr, &tensor, nullptr, nullptr) == ESP_INVALID_ARGUMENT);
}

}  // namespace

int main(int argc, char** argv) {
  test_refusals();
  return run_tests(argc, argv, test);
}
