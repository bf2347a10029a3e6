// fused_sgd on heap buffers of exactly their size, on every instruction set, which must agree in every bit.
#include "espalier/fused_sgd.h"

#include "fused_step_subject.h"

namespace {

struct Sgd {
  using Tensor = esp_sgd_tensor;
  using Options = esp_sgd_options;
  struct Subject : StepSubject<Tensor> {
    Subject(const Case& c, uint32_t seed) : StepSubject(c, seed), momentum(4 * n) {
      tensor.momentum = momentum.as<float>();
      tensor.first = 1;
    }
    bool operator==(const Subject& other) const {
      return StepSubject::operator==(other) && momentum == other.momentum;
    }
    Buffer momentum;
  };
  static constexpr auto step = esp_fused_sgd;
  static Options everything() { return {0.05, 0.9, 0, 0.01, 1.0, 1, 1, 1, {}}; }
  static void restart(Tensor& t) { t.first = 1; }
  static bool unchanged(const Tensor& t) { return t.first == 1; }
};

void check_arguments() {
  Arguments<Sgd> arguments({0.1, 0, 0, 0, 0, 0, 0, 0, {}});
  arguments.options.momentum = 0.9;
  CHECK(arguments.refused("no momentum buffer"));
  arguments.options.nesterov = 1;
  CHECK(arguments.refused("Nesterov needs"));
  arguments.check_common();
}

}  // namespace

int main() {
  check_variants<Sgd>();
  check_arguments();
  return finish();
}
