// fused_adamw on heap buffers of exactly their size, on every instruction set, which must agree in every bit.
#include "espalier/fused_adamw.h"

#include <cmath>

#include "check.h"
#include "fused_step_subject.h"

namespace {

struct Subject : StepSubject<esp_adamw_tensor> {
  Subject(const Case& c, uint32_t seed) : StepSubject(c, seed), first(4 * n), second(4 * n) {
    tensor.first_moment = first.as<float>();
    tensor.second_moment = second.as<float>();
  }
  bool operator==(const Subject& other) const {
    return StepSubject::operator==(other) && first == other.first && second == other.second;
  }
  Buffer first, second;
};

// Two steps with everything on, one with noise, then one that is skipped.
std::vector<Subject> run(int32_t isa, int32_t threads) {
  CHECK(esp_isa_set(isa) == ESP_OK);
  CHECK(esp_threads_set(threads) == ESP_OK);
  std::vector<Subject> subjects;
  std::vector<esp_adamw_tensor> list;
  uint32_t seed = 1;
  for (const Case& c : cases()) {
    subjects.emplace_back(c, seed++);
    list.push_back(subjects.back().tensor);
  }
  esp_adamw_options options = {0.05, 0.9, 0.999, 1e-8, 0.01, 1.0, 1, 1, {}};
  esp_step_result result;
  for (int step = 0; step < 3; step++) {
    options.noise = {step < 2 ? 0 : 0.5, 4, -7, INT64_MAX - 100};  // its counter overflows on the way
    CHECK(esp_fused_adamw(list.data(), static_cast<int64_t>(list.size()), &options, &result) == ESP_OK);
    CHECK(!result.skipped && result.clip_factor < 1 && result.non_finite == 0 &&
          result.non_finite_channels == 0);
  }
  list.back().mask = nullptr;
  list.back().gate = nullptr;
  const_cast<uint16_t*>(static_cast<const uint16_t*>(list.back().gradient))[1] =
      0x7f80;  // beyond every float type
  CHECK(esp_fused_adamw(list.data(), static_cast<int64_t>(list.size()), &options, &result) == ESP_OK);
  CHECK(result.skipped && result.non_finite == 1);
  for (const esp_adamw_tensor& t : list) CHECK(t.step == 3);
  return subjects;
}

void check_arguments() {
  float value = 1;
  esp_adamw_tensor tensor = {};
  tensor.weight = &value;
  tensor.gradient = &value;
  tensor.rows = tensor.cols = 1;
  const esp_adamw_options good = {0.1, 0.9, 0.999, 1e-8, 0, 0, 0, 0, {}};
  esp_adamw_options options = good;
  esp_step_result result;
  CHECK(esp_fused_adamw(&tensor, 1, &options, nullptr) == ESP_INVALID_ARGUMENT);
  CHECK(esp_fused_adamw(nullptr, 1, &options, &result) == ESP_INVALID_ARGUMENT);
  CHECK(esp_fused_adamw(&tensor, -1, &options, &result) == ESP_INVALID_ARGUMENT);
  const auto refused = [&](const char* what) {
    const bool is = esp_fused_adamw(&tensor, 1, &options, &result) == ESP_INVALID_ARGUMENT &&
                    std::strstr(esp_last_error(), what) != nullptr;
    if (!is) std::printf("%s\n", esp_last_error());
    return is;
  };
  CHECK(refused("no first moment"));
  tensor.first_moment = &value;
  CHECK(refused("no second moment"));
  tensor.second_moment = &value;
  tensor.step = -1;
  CHECK(refused("has done -1 steps"));
  tensor.step = 0;
  options.learning_rate = NAN;
  CHECK(refused("learning rate nan"));
  options = good;
  options.beta1 = 1;
  CHECK(refused("beta1 1"));
  options = good;
  options.beta2 = NAN;
  CHECK(refused("beta2 nan"));
  options = good;
  options.epsilon = 1e-60;  // 0 as F32
  CHECK(refused("epsilon 1e-60"));
  options = good;
  tensor.rows = INT64_MAX / 2;
  tensor.cols = 3;
  CHECK(refused("rows of 3"));
  tensor.rows = tensor.cols = 1;
  tensor.working_copy_type = ESP_COPY_F32;
  CHECK(refused("no working copy"));
  tensor.working_copy_type = 9;
  CHECK(refused("working copy type 9"));
  tensor.working_copy_type = ESP_COPY_INT8;
  tensor.working_copy = &value;
  CHECK(refused("has no scale"));
  tensor.channel = 3;
  CHECK(refused("channel 3"));
  CHECK(value == 1);
}

}  // namespace

int main() {
  const std::vector<Subject> expected = run(ESP_ISA_SCALAR, 1);
  for (int32_t isa = ESP_ISA_SCALAR; isa <= esp_isa_best(); isa++) {
    for (int32_t threads : {1, 3}) {
      if (isa == ESP_ISA_SCALAR && threads == 1) continue;  // that is what is expected
      const std::vector<Subject> actual = run(isa, threads);
      for (size_t i = 0; i < expected.size(); i++) CHECK(actual[i] == expected[i]);
    }
  }
  check_arguments();
  return finish();
}
