// linear, activation and dp_accumulate through the C ABI on heap buffers of exactly the size that they may
// touch, for the sanitizers: every instruction set, one to three threads, sizes around lanes, turns, groups
// of rows and pieces.
#include "espalier/linear.h"

#include <cmath>
#include <initializer_list>
#include <memory>

#include "check.h"
#include "espalier/activation.h"
#include "espalier/dp_accumulate.h"

namespace {

std::unique_ptr<float[]> filled(int64_t n, float value) {
  std::unique_ptr<float[]> data(new float[static_cast<size_t>(n)]);
  for (int64_t i = 0; i < n; i++) data[static_cast<size_t>(i)] = value;
  return data;
}

void run_linear(int64_t features, int64_t outputs, int64_t rows, int32_t transposed, bool has_bias) {
  const auto weight = filled(outputs * features, 0.5f), bias = filled(outputs, 1.0f);
  const auto x = filled(rows * features, 2.0f), z = filled(rows * outputs, 0.0f);
  const esp_linear model{weight.get(), has_bias ? bias.get() : nullptr, outputs, features, transposed};
  CHECK(esp_linear_forward(&model, x.get(), rows, z.get()) == ESP_OK);
  for (int64_t i = 0; i < rows * outputs; i++)
    CHECK(z[static_cast<size_t>(i)] == static_cast<float>(features) + (has_bias ? 1 : 0));
  const auto dw = filled(outputs * features, NAN), db = filled(outputs, NAN),
             dx = filled(rows * features, NAN), s = filled(rows * outputs, 0.25f);
  const esp_linear gradient{dw.get(), has_bias ? db.get() : nullptr, outputs, features, transposed};
  CHECK(esp_linear_backward(&gradient, x.get(), rows, s.get()) == ESP_OK);
  for (int64_t j = 0; j < outputs * features; j++)
    CHECK(dw[static_cast<size_t>(j)] == 0.5f * static_cast<float>(rows));
  for (int64_t c = 0; has_bias && c < outputs; c++)
    CHECK(db[static_cast<size_t>(c)] == 0.25f * static_cast<float>(rows));
  CHECK(esp_linear_backward_rows(&model, s.get(), rows, dx.get()) == ESP_OK);
  for (int64_t j = 0; j < rows * features; j++)
    CHECK(dx[static_cast<size_t>(j)] == 0.125f * static_cast<float>(outputs));
  std::unique_ptr<double[]> squares(new double[static_cast<size_t>(rows)]());
  CHECK(esp_linear_squares(&model, x.get(), rows, s.get(), squares.get()) == ESP_OK);
  for (int64_t i = 0; i < rows; i++) {
    CHECK(squares[static_cast<size_t>(i)] ==
          0.0625 * static_cast<double>(outputs) * (4.0 * static_cast<double>(features) + (has_bias ? 1 : 0)));
  }
  if (rows == 0) return;
  CHECK(esp_linear_descend(&model, x.get(), s.get(), 0.5) == ESP_OK);
  for (int64_t j = 0; j < outputs * features; j++) CHECK(weight[static_cast<size_t>(j)] == 0.25f);
  for (int64_t c = 0; has_bias && c < outputs; c++) CHECK(bias[static_cast<size_t>(c)] == 0.875f);
}

void run_activation(int64_t n) {
  for (int32_t kind : {ESP_RELU, ESP_LEAKY_RELU, ESP_SIGMOID, ESP_TANH}) {
    const auto y = filled(n, -1.0f), s = filled(n, 2.0f);
    CHECK(esp_activation_forward(kind, 0.5f, y.get(), n) == ESP_OK);
    CHECK(esp_activation_backward(kind, 0.5f, y.get(), s.get(), n) == ESP_OK);
    for (int64_t i = 1; i < n; i++) {
      CHECK(y[static_cast<size_t>(i)] == y[0]);
      CHECK(s[static_cast<size_t>(i)] == s[0]);
    }
    CHECK(n == 0 || kind != ESP_LEAKY_RELU || (y[0] == -0.5f && s[0] == 1.0f));
  }
}

void run_dp(int64_t n, int64_t more) {
  const auto a = filled(n, 3.0f), b = filled(more, 4.0f), sum_a = filled(n, 0.0f), sum_b = filled(more, 0.0f);
  const esp_dp_tensor list[] = {{a.get(), sum_a.get(), n}, {b.get(), sum_b.get(), more}};
  int32_t clipped = -1;
  CHECK(esp_dp_accumulate(list, 2, 1e9, &clipped) == ESP_OK && clipped == 0);
  for (int64_t i = 0; i < n; i++) CHECK(sum_a[static_cast<size_t>(i)] == 3.0f);
  for (int64_t i = 0; i < more; i++) CHECK(sum_b[static_cast<size_t>(i)] == 4.0f);
}

}  // namespace

int main() {
  for (int32_t isa : {ESP_ISA_SCALAR, ESP_ISA_AVX2, ESP_ISA_AVX512}) {
    if (esp_isa_set(isa) != ESP_OK) continue;
    for (int32_t threads : {1, 3}) {
      CHECK(esp_threads_set(threads) == ESP_OK);
      for (int64_t features : {0, 1, 15, 16, 17, 63, 64, 65, 1003}) {
        for (int64_t outputs : {0, 1, 3, 66}) {
          for (int64_t rows : {0, 1, 5, 33}) {
            for (int32_t transposed : {0, 1}) run_linear(features, outputs, rows, transposed, rows != 5);
          }
        }
      }
      run_linear(4099, 70, 2, 0, true);
      run_linear(4099, 70, 2, 1, true);
      for (int64_t n : {0, 1, 15, 16, 17, 70001}) run_activation(n);
      for (int64_t n : {0, 1, 2, 31, 32, 33, 16383, 16385, 70001}) run_dp(n, n / 2 + 1);
    }
  }
  esp_linear nothing{nullptr, nullptr, 2, 3, 0};
  float x[3] = {};
  CHECK(esp_activation_forward(4, 0, x, 3) == ESP_INVALID_ARGUMENT);
  CHECK(esp_activation_forward(ESP_LEAKY_RELU, -1, x, 3) == ESP_INVALID_ARGUMENT);
  CHECK(esp_activation_backward(ESP_RELU, 0, nullptr, x, 3) == ESP_INVALID_ARGUMENT);
  CHECK(esp_linear_forward(&nothing, x, 1, x) == ESP_INVALID_ARGUMENT);
  CHECK(esp_linear_forward(nullptr, x, 1, x) == ESP_INVALID_ARGUMENT);
  return finish();
}
