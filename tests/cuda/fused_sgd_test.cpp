// fused_sgd on a device: momentum, Nesterov, decay, clip and skip; see fused_step_test.h.
#include "espalier/cuda/fused_sgd.h"

#include "divisor.h"
#include "fused_step_test.h"

namespace {

using namespace esp_test;

struct Sgd {
  using Tensor = esp_sgd_tensor;
  using Options = esp_sgd_options;
  using History = int32_t;
  static constexpr int states = 1;
  static constexpr auto plan = esp_cuda_fused_sgd_plan;
  static constexpr auto queue = esp_cuda_fused_sgd;
  static constexpr auto run = esp_fused_sgd;
  static void set_state(Tensor& t, int, float* momentum) {
    t.momentum = momentum;
    t.first = 1;
  }
};

#if !defined(ESP_ON_GPU)
// The last three pieces of 3e9 weights: indices need 64 bits.
void test_far() {
  constexpr int64_t n = 3000000001, pieces = (n + 6143) / 6144, start = (pieces - 3) * 6144;
  const Sparse<float> weight(n), gradient(n);
  const Sparse<uint8_t> mask((n + 7) / 8), gate((n + 7) / 8);
  const Sparse<int8_t> copy(n);
  if (checks_failed > 0) return;
  const Device<float> scale(std::vector<float>{0.004f});
  Random random(3);
  std::vector<float> weights, gradients;
  std::vector<uint8_t> masks, gates((n - start + 7) / 8, 0xff);
  for (int64_t i = start; i < n; i++) {
    weights.push_back(weight.get()[i] = random.uniform());
    gradients.push_back(gradient.get()[i] = random.uniform());
  }
  for (int64_t i = start / 8; i < (n + 7) / 8; i++) {
    masks.push_back(mask.get()[i] = static_cast<uint8_t>(random.bits()));
    gate.get()[i] = 0xff;
  }
  const esp_sgd_options options = {0.05, 0, 0, 0.01, 0, 0, 0, 0, {}};
  float given = 0.004f;
  std::vector<int8_t> copies(weights.size());
  esp_sgd_tensor host = {weights.data(),
                         gradients.data(),
                         nullptr,
                         masks.data(),
                         gates.data(),
                         copies.data(),
                         &given,
                         1,
                         n - start,
                         ESP_F32,
                         ESP_COPY_INT8,
                         ESP_CHANNEL_TENSOR,
                         1,
                         1};
  esp_step_result expected;
  CHECK(esp_fused_sgd(&host, 1, &options, &expected) == ESP_OK);
  const esp_sgd_tensor device = {weight.get(),  gradient.get(),     nullptr, mask.get(), gate.get(),
                                 copy.get(),    scale.get(),        1,       n,          ESP_F32,
                                 ESP_COPY_INT8, ESP_CHANNEL_TENSOR, 1,       1};
  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fused_sgd_plan(&device, 1, &options, plan, table);
  });
  emulator::options.first_block = pieces - 3;
  const Device<esp_step_result> result(1);
  CHECK(esp_cuda_fused_sgd(&planned.plan, planned.table(), planned.workspace(), &options, nullptr,
                           result.get(), nullptr) == ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  emulator::options.first_block = 0;
  CHECK(std::memcmp(weight.get() + start, weights.data(), weights.size() * 4) == 0);
  CHECK(std::memcmp(copy.get() + start, copies.data(), copies.size()) == 0);
  CHECK(std::memcmp(gate.get() + start / 8, gates.data(), gates.size()) == 0);
}
#endif

void test(const Setting& setting) {
  Random random(setting.seed);
  const esp_sgd_options plain = {0.05, 0, 0, 0, 0, 0, 0, 0, {}};
  const esp_sgd_options dampened = {0.05, 0.9, 0.25, 0.01, 0, 0, 1, 0, {}};
  const esp_sgd_options all = {0.05, 0.9, 0, 0.01, 1.0, 1, 0, 1, {}};
  const esp_sgd_options clipped = {0.05, 0.9, 0, 0, 0.5, 0, 1, 0, {}};
  const esp_sgd_options choices[] = {plain, dampened, all, clipped};
  const int turns = setting.small || setting.seed % 4 != 0 ? 1 : 2;
  for (int turn = 0; turn < turns; turn++) {
    Pair<Sgd> pair(cases(setting, random), choices[(setting.seed + static_cast<uint64_t>(turn)) % 4], random);
    pair.run(3, 0);
  }
#if !defined(ESP_ON_GPU)
  if (setting.seed == 1 && !setting.small) test_far();
#endif
  const esp_sgd_options skipping = {0.05, 0.9, 0, 0, 0, 0, 0, 1, {}};
  test_unusual<Sgd>(plain, skipping, clipped, random);
  if (setting.small) return;  // noise is a matter of arithmetic alone
  esp_sgd_options noisy = choices[setting.seed % 4];
  noisy.noise = {0.25, 3, -5, (int64_t{1} << 32) - 1500};  // its lower half overflows on the way
  Pair<Sgd> with_noise(cases(setting, random), noisy, random);
  with_noise.run(3, 0);
}

void test_refusals() {
  esp_cuda_plan plan;
  float x[4] = {};
  esp_sgd_tensor tensor = {x, x, nullptr, nullptr,       nullptr, nullptr, nullptr,
                           1, 4, ESP_F32, ESP_COPY_NONE, 0,       0,       1};
  esp_sgd_options options = {0.1, 0.9, 0, 0, 0, 0, 0, 0, {}};
  CHECK(esp_cuda_fused_sgd_plan(&tensor, 1, &options, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_cuda_last_error(), "no momentum buffer") != nullptr);
  options.momentum = -1;
  CHECK(esp_cuda_fused_sgd_plan(&tensor, 1, &options, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  options.momentum = 0;
  CHECK(esp_cuda_fused_sgd_plan(&tensor, 1, &options, &plan, nullptr) == ESP_OK);
  options.max_norm = 1;  // not what the plan was made for
  esp_step_result result;
  int32_t started;
  CHECK(esp_cuda_fused_sgd(&plan, x, x, &options, &started, &result, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_cuda_last_error(), "without norm") != nullptr);
  CHECK(esp_cuda_fused_sgd(&plan, x, nullptr, &options, &started, &result, nullptr) == ESP_INVALID_ARGUMENT);
  tensor.scale_given = 1;
  CHECK(esp_cuda_fused_sgd_plan(&tensor, 1, &options, &plan, nullptr) == ESP_INVALID_ARGUMENT);
}

// Small divisors, around powers of two, and any; below, at and above multiples, up to the last number.
void test_divisors() {
  Random random(5);
  const auto any = [&] { return static_cast<uint32_t>(random.bits() >> 33); };
  constexpr uint32_t largest = INT32_MAX;
  int64_t wrong = 0;
  for (uint32_t turn = 0; turn < 20000; turn++) {
    const uint32_t d = turn < 3000   ? turn + 1
                       : turn < 3093 ? (1u << (turn - 3000) / 3) + (turn - 3000) % 3 - 1
                                     : any() >> turn % 31;
    if (d == 0) continue;
    const esp::Divisor by = esp::divisor_of(d);
    for (const uint32_t multiple : {d, any() / d * d, largest / d * d}) {
      for (const uint32_t n : {multiple - 1, multiple, multiple + 1}) {
        if (n <= largest) wrong += esp::quotient(n, by) != n / d;
      }
    }
    for (const uint32_t n : {0u, any(), largest}) wrong += esp::quotient(n, by) != n / d;
  }
  CHECK(wrong == 0);
}

}  // namespace

int main(int argc, char** argv) {
  test_refusals();
  test_divisors();
  return run_tests(argc, argv, test);
}
