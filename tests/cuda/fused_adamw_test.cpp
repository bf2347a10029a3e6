// fused_adamw on a device: betas, decay, clip and skip, the age of each tensor, moments that end as 0; see
// fused_step_test.h.
#include "espalier/cuda/fused_adamw.h"

#include "fused_step_test.h"

namespace {

using namespace esp_test;

struct Adamw {
  using Tensor = esp_adamw_tensor;
  using Options = esp_adamw_options;
  using History = int64_t;
  static constexpr int states = 2;
  static constexpr auto plan = esp_cuda_fused_adamw_plan;
  static constexpr auto queue = esp_cuda_fused_adamw;
  static constexpr auto run = esp_fused_adamw;
  static void set_state(Tensor& t, int state, float* moment) {
    (state == 0 ? t.first_moment : t.second_moment) = moment;
  }
};

// Without a gradient moments decay below 2^-126 within some steps, and are 0 from then on, on both sides.
void test_decay(Random& random) {
  const esp_adamw_options options = {0.05, 0.5, 0.25, 1e-8, 0.01, 0, 0, 0, {}};
  Pair<Adamw> pair({{3, 33, ESP_F32, ESP_COPY_NONE, ESP_CHANNEL_TENSOR, false, false, false, false}}, options,
                   random);
  pair.run(1, 0);
  Subject<Adamw>& subject = pair.subjects()[0];
  subject.gradient.assign(subject.gradient.size(), 0);
  subject.upload();
  bool denormal = false;
  for (int turn = 0; turn < 10; turn++) {
    pair.run(15, 0);
    for (const std::vector<float>& moments : subject.state) {
      for (const float m : moments) denormal = denormal || (m != 0 && std::fabs(m) < 0x1p-126f);
    }
  }
  CHECK(!denormal);
  for (const std::vector<float>& moments : subject.state) {
    for (const float m : moments) CHECK(m == 0);
  }
}

#if !defined(ESP_ON_GPU)
// The last three pieces of 3e9 weights: indices need 64 bits.
void test_far() {
  constexpr int64_t n = 3000000001, pieces = (n + 6143) / 6144, start = (pieces - 3) * 6144;
  const Sparse<float> weight(n), gradient(n), first(n), second(n);
  const Sparse<uint8_t> mask((n + 7) / 8);
  if (checks_failed > 0) return;
  Random random(3);
  std::vector<float> w, g, m, v;
  std::vector<uint8_t> masks;
  for (int64_t i = start; i < n; i++) {
    w.push_back(weight.get()[i] = random.uniform());
    g.push_back(gradient.get()[i] = random.uniform());
    m.push_back(first.get()[i] = random.uniform());
    v.push_back(second.get()[i] = std::fabs(random.uniform()));
  }
  for (int64_t i = start / 8; i < (n + 7) / 8; i++)
    masks.push_back(mask.get()[i] = static_cast<uint8_t>(random.bits()));
  const esp_adamw_options options = {0.05, 0.9, 0.999, 1e-8, 0.01, 0, 0, 0, {}};
  const auto tensor = [&](float* weights, const void* gradients, float* moments, float* squares,
                          const uint8_t* bits, int64_t count) {
    esp_adamw_tensor t = {};
    t.weight = weights;
    t.gradient = gradients;
    t.first_moment = moments;
    t.second_moment = squares;
    t.mask = bits;
    t.rows = 1;
    t.cols = count;
    t.step = 7;
    t.working_copy_type = ESP_COPY_NONE;
    return t;
  };
  esp_adamw_tensor host = tensor(w.data(), g.data(), m.data(), v.data(), masks.data(), n - start);
  esp_step_result expected;
  CHECK(esp_fused_adamw(&host, 1, &options, &expected) == ESP_OK);
  const esp_adamw_tensor device =
      tensor(weight.get(), gradient.get(), first.get(), second.get(), mask.get(), n);
  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fused_adamw_plan(&device, 1, &options, plan, table);
  });
  const Device<int64_t> steps(std::vector<int64_t>{7});
  const Device<esp_step_result> result(1);
  emulator::options.first_block = pieces - 3;
  CHECK(esp_cuda_fused_adamw(&planned.plan, planned.table(), planned.workspace(), &options, steps.get(),
                             result.get(), nullptr) == ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  emulator::options.first_block = 0;
  CHECK(std::memcmp(weight.get() + start, w.data(), w.size() * 4) == 0);
  CHECK(std::memcmp(first.get() + start, m.data(), m.size() * 4) == 0);
  CHECK(std::memcmp(second.get() + start, v.data(), v.size() * 4) == 0);
}
#endif

void test(const Setting& setting) {
  Random random(setting.seed);
  const esp_adamw_options plain = {0.05, 0.9, 0.999, 1e-8, 0, 0, 0, 0, {}};
  const esp_adamw_options decays = {0.05, 0.5, 0.9, 1e-3, 0.1, 0, 1, 0, {}};
  const esp_adamw_options all = {0.05, 0.9, 0.98, 1e-8, 0.01, 1.0, 0, 1, {}};
  const esp_adamw_options clipped = {0.05, 0, 0, 1e-6, 0, 0.5, 1, 0, {}};
  const esp_adamw_options choices[] = {plain, decays, all, clipped};
  const int turns = setting.small || setting.seed % 4 != 0 ? 1 : 2;
  for (int turn = 0; turn < turns; turn++) {
    Pair<Adamw> pair(cases(setting, random), choices[(setting.seed + static_cast<uint64_t>(turn)) % 4],
                     random);
    pair.run(3, 0);
  }
  const esp_adamw_options skipping = {0.05, 0.9, 0.999, 1e-8, 0.01, 0, 0, 1, {}};
  test_unusual<Adamw>(plain, skipping, clipped, random);
  if (setting.seed == 1 && !setting.small) test_decay(random);
#if !defined(ESP_ON_GPU)
  if (setting.seed == 1 && !setting.small) test_far();
#endif
  if (setting.small) return;  // noise is a matter of arithmetic alone
  esp_adamw_options noisy = choices[setting.seed % 4];
  noisy.noise = {0.25, 3, -5, (int64_t{1} << 32) - 1500};  // its lower half overflows on the way
  Pair<Adamw> with_noise(cases(setting, random), noisy, random);
  with_noise.run(3, 0);
}

void test_refusals() {
  esp_cuda_plan plan;
  float x[4] = {};
  esp_adamw_tensor tensor = {};
  tensor.weight = tensor.first_moment = x;
  tensor.gradient = x;
  tensor.rows = 1;
  tensor.cols = 4;
  esp_adamw_options options = {0.1, 0.9, 0.999, 1e-8, 0, 0, 0, 0, {}};
  CHECK(esp_cuda_fused_adamw_plan(&tensor, 1, &options, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_cuda_last_error(), "no second moment") != nullptr);
  tensor.second_moment = x;
  CHECK(esp_cuda_fused_adamw_plan(&tensor, 1, &options, &plan, nullptr) == ESP_OK);
  options.beta1 = 1;
  CHECK(esp_cuda_fused_adamw_plan(&tensor, 1, &options, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  options.beta1 = 0.9;
  options.max_norm = 1;  // not what the plan was made for
  esp_step_result result;
  int64_t steps;
  CHECK(esp_cuda_fused_adamw(&plan, x, x, &options, &steps, &result, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_cuda_last_error(), "without norm") != nullptr);
  CHECK(esp_cuda_fused_adamw(&plan, x, nullptr, &options, &steps, &result, nullptr) == ESP_INVALID_ARGUMENT);
}

}  // namespace

int main(int argc, char** argv) {
  test_refusals();
  return run_tests(argc, argv, test);
}
