// gradient_norm on a device gives the CPU's bits: sizes around a vector, a staged tile (256 or 512 elements),
// a chunk (8192) and the 16 chunks of a block; unaligned starts, masks and gates at any byte, many tensors,
// NaN and infinity seen and hidden.
#include "espalier/cuda/gradient_norm.h"

#include "device_test.h"
#include "gradient_norm.h"

namespace {

using namespace esp_test;

// One tensor on both sides.
struct Subject {
  Subject(int64_t n, esp_dtype dtype, bool masked, bool gated, Random& random)
      : bytes(static_cast<size_t>(n * (dtype == ESP_F32 ? 4 : 2))),
        mask(static_cast<size_t>(masked ? (n + 7) / 8 : 0)),
        gate(static_cast<size_t>(gated ? (n + 7) / 8 : 0)),
        size(dtype == ESP_F32 ? 4 : 2) {
    for (int64_t i = 0; i < n; i++) {
      const float g = random.uniform() * (i % 7 == 0 ? 100.0f : 1e-3f);
      uint32_t word;
      std::memcpy(&word, &g, 4);
      if (dtype == ESP_F32) std::memcpy(bytes.data() + i * 4, &word, 4);
      const uint16_t half = static_cast<uint16_t>(dtype == ESP_BF16 ? word >> 16 : random.below(0x7c00));
      if (dtype != ESP_F32) std::memcpy(bytes.data() + i * 2, &half, 2);
    }
    for (uint8_t& bits : mask) bits = static_cast<uint8_t>(random.bits());
    for (uint8_t& bits : gate) bits = static_cast<uint8_t>(random.bits());
    host = {bytes.data(), masked ? mask.data() : nullptr, gated ? gate.data() : nullptr, n, dtype};
  }
  void put(int64_t i, uint32_t word) {
    std::memcpy(bytes.data() + i * size, &word, static_cast<size_t>(size));
  }

  std::vector<uint8_t> bytes, mask, gate;
  int64_t size;
  esp_gradient host;
};

bool same(const esp_gradient_norm_result& a, const esp_gradient_norm_result& b) {
  return a.non_finite == b.non_finite &&
         (std::memcmp(&a.norm, &b.norm, 8) == 0 || (a.norm != a.norm && b.norm != b.norm));
}

void compare(const std::vector<Subject>& subjects, Random& random) {
  std::vector<esp_gradient> host, device;
  std::vector<Device<uint8_t>> memory;
  memory.reserve(subjects.size() * 3);
  const auto upload = [&](const std::vector<uint8_t>& bytes, int64_t shift) {
    memory.emplace_back(bytes, shift);
    return memory.back().get();
  };
  for (const Subject& subject : subjects) {
    host.push_back(subject.host);
    esp_gradient g = subject.host;
    g.gradient =
        upload(subject.bytes, random.below(3) == 0 ? random.below(16) / subject.size * subject.size : 0);
    if (g.mask != nullptr) g.mask = upload(subject.mask, random.below(5));
    if (g.gate != nullptr) g.gate = upload(subject.gate, random.below(5));
    device.push_back(g);
  }
  const int64_t count = static_cast<int64_t>(host.size());
  esp_gradient_norm_result expected;
  CHECK(esp_gradient_norm(host.data(), count, &expected) == ESP_OK);

  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_gradient_norm_plan(device.data(), count, plan, table);
  });
  const Device<esp_gradient_norm_result> result(1);
  const Stream stream;
  const auto run = [&] {
    return esp_cuda_gradient_norm(&planned.plan, planned.table(), planned.workspace(), result.get(),
                                  stream.get());
  };
  CHECK(run() == ESP_OK && stream.wait());
  CHECK(same(result.values()[0], expected));
  result.zero();
  CHECK(run_captured(stream, 2, run));
  CHECK(same(result.values()[0], expected));
}

#if !defined(ESP_ON_GPU)
// The last block of 3e9 elements, where indices need 64 bits; it is made the last to arrive.
void test_far() {
  constexpr int64_t n = 3000000007, chunks = (n - 1) / esp::gradient_norm_block + 1,
                    blocks = (chunks - 1) / esp::gradient_norm_chunks_a_block + 1;
  const Sparse<uint16_t> gradient(n);
  const Sparse<uint8_t> mask((n + 7) / 8);
  if (checks_failed > 0) return;
  for (const int64_t back : {1, 2, 3, 5000, 9001}) {
    gradient.get()[n - back] = 0x4040;  // 3
    if (back != 2) mask.get()[(n - back) / 8] |= static_cast<uint8_t>(1 << (n - back) % 8);
  }
  gradient.get()[n - 2] = 0x7f80;  // infinity, hidden
  const esp_gradient tensor = {gradient.get(), mask.get(), nullptr, n, ESP_BF16};
  const Planned planned(
      [&](esp_cuda_plan* plan, void* table) { return esp_cuda_gradient_norm_plan(&tensor, 1, plan, table); });
  CHECK(planned.plan.operation[esp::gradient_norm_chunks] == chunks);
  esp::GradientNormState state = {};
  state.arrived = static_cast<uint32_t>(blocks - 1);
  CHECK(esp_cuda_copy(planned.workspace(), &state, sizeof state, nullptr) == ESP_OK);
  emulator::options.first_block = blocks - 1;
  const Device<esp_gradient_norm_result> result(1);
  CHECK(esp_cuda_gradient_norm(&planned.plan, planned.table(), planned.workspace(), result.get(), nullptr) ==
        ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  emulator::options.first_block = 0;
  CHECK(result.values()[0].norm == 6 && result.values()[0].non_finite == 0);
}
#endif

void test(const Setting& setting) {
  Random random(setting.seed);
  std::vector<Subject> subjects;
  compare(subjects, random);
  const int64_t sizes[] = {0, 1, 15, 17, 255, 257, 8191, 8192, 8193, 20001};
  for (const int64_t n : sizes) {
    if (setting.small && n > 300) continue;
    const bool masked = random.below(2) == 0, gated = random.below(2) == 0;
    subjects.emplace_back(n, static_cast<esp_dtype>(random.below(3)), masked, gated, random);
  }
  compare(subjects, random);
  for (int i = 0; i < (setting.small ? 20 : 40); i++) {
    subjects.emplace_back(1 + random.below(200), static_cast<esp_dtype>(random.below(3)), i % 2 == 0,
                          i % 3 == 0, random);
  }
  compare(subjects, random);

#if !defined(ESP_ON_GPU)
  if (setting.seed == 1 && !setting.small) test_far();
#endif
  // More chunks than lanes of the last sum.
  if (setting.seed % 10 == 1 && !setting.small) {
    for (int i = 0; i < 500; i++) subjects.emplace_back(1 + i % 3, ESP_F32, false, false, random);
    compare(subjects, random);
  }
  for (Subject& subject : subjects) {
    if (subject.host.n == 0) continue;
    const int64_t i = random.below(subject.host.n);
    if (!subject.mask.empty())
      subject.mask[static_cast<size_t>(i / 8)] &= static_cast<uint8_t>(~(1 << i % 8));
    subject.put(i, subject.host.dtype == ESP_F32 ? 0x7fc00000 : 0x7fc0);  // hidden in every other tensor
    if (random.below(2) == 0)
      subject.put(random.below(subject.host.n), subject.host.dtype == ESP_F32 ? 0xff800000 : 0xff80);
  }
  compare(subjects, random);
}

void test_refusals() {
  esp_cuda_plan plan;
  const esp_gradient none = {nullptr, nullptr, nullptr, 3, ESP_F32};
  CHECK(esp_cuda_gradient_norm_plan(&none, 1, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_cuda_last_error(), "tensor 0 is NULL") != nullptr);
  CHECK(esp_cuda_gradient_norm_plan(nullptr, 1, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_cuda_gradient_norm_plan(&none, 1, nullptr, nullptr) == ESP_INVALID_ARGUMENT);
}

}  // namespace

int main(int argc, char** argv) {
  test_refusals();
  return run_tests(argc, argv, test);
}
