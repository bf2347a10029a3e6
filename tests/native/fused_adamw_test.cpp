// fused_adamw on heap buffers of exactly their size, on every instruction set, which must agree in every bit.
#include "espalier/fused_adamw.h"

#include "fused_step_subject.h"

namespace {

struct Adamw {
  using Tensor = esp_adamw_tensor;
  using Options = esp_adamw_options;
  struct Subject : StepSubject<Tensor> {
    Subject(const Case& c, uint32_t seed) : StepSubject(c, seed), first(4 * n), second(4 * n) {
      tensor.first_moment = first.as<float>();
      tensor.second_moment = second.as<float>();
    }
    bool operator==(const Subject& other) const {
      return StepSubject::operator==(other) && first == other.first && second == other.second;
    }
    Buffer first, second;
  };
  static constexpr auto step = esp_fused_adamw;
  static Options everything() { return {0.05, 0.9, 0.999, 1e-8, 0.01, 1.0, 1, 1, {}}; }
  static void restart(Tensor&) {}
  static bool unchanged(const Tensor& t) { return t.step == 3; }
};

void check_arguments() {
  Arguments<Adamw> arguments({0.1, 0.9, 0.999, 1e-8, 0, 0, 0, 0, {}});
  esp_adamw_tensor& tensor = arguments.tensor;
  CHECK(arguments.refused("no first moment"));
  tensor.first_moment = &arguments.value;
  CHECK(arguments.refused("no second moment"));
  tensor.second_moment = &arguments.value;
  tensor.step = -1;
  CHECK(arguments.refused("has done -1 steps"));
  tensor.step = 0;
  arguments.options.beta1 = 1;
  CHECK(arguments.refused("beta1 1"));
  arguments.options.beta2 = NAN;
  CHECK(arguments.refused("beta2 nan"));
  arguments.options.epsilon = 1e-60;  // 0 as F32
  CHECK(arguments.refused("epsilon 1e-60"));
  arguments.check_common();
}

}  // namespace

int main() {
  check_variants<Adamw>();
  check_arguments();
  return finish();
}
