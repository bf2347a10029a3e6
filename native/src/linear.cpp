#include "espalier/linear.h"

#include <cmath>

#include "arguments.h"
#include "linear_kernel.h"
#include "thread_pool.h"

namespace {

using esp::Dots;
using esp::LinearKernels;
using esp::Product;

// Multiplications and additions below which a call stays on its thread: they take some ten microseconds,
// which a sleeping thread takes to wake up.
constexpr int64_t parallel_terms = int64_t{1} << 19;

// Of rows and columns of a result that one piece of work is: its part of b stays in a cache for all of its
// rows. A few rows read it once, and have all columns that fit registers.
constexpr int64_t piece_rows = 32, piece_columns = 64, piece_columns_alone = 256;

esp_status check(const char* function, const esp_linear* model, const void* x, int64_t rows,
                 const void* outputs, bool has_weight) {
  if (model == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "linear: %s of NULL", function);
  const int64_t n = model->features, m = model->outputs;
  if (n < 0 || m < 0 || rows < 0 || (n > 0 && (m > esp::max_elements / n || rows > esp::max_elements / n)) ||
      (m > 0 && rows > esp::max_elements / m)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "linear: %s of %lld outputs, %lld features, %lld rows", function,
                     static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(rows));
  }
  if (model->transposed != 0 && model->transposed != 1) {
    return esp::fail(ESP_INVALID_ARGUMENT, "linear: %s with transposed %d; 0 or 1 is right", function,
                     model->transposed);
  }
  if ((has_weight && m * n > 0 && model->weight == nullptr) || (rows * n > 0 && x == nullptr) ||
      (rows * m > 0 && outputs == nullptr)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "linear: %s with a tensor that is NULL", function);
  }
  return ESP_OK;
}

// Runs body(row, rows, column, columns) over the pieces of a result, in parallel where its sums are worth it.
template <class Body>
void for_pieces(int64_t rows, int64_t columns, int64_t terms, const Body& body) {
  const int64_t width = rows < 4 ? piece_columns_alone : piece_columns;
  const int64_t down = (rows + piece_rows - 1) / piece_rows;
  const int64_t across = (columns + width - 1) / width;
  const auto piece = [&](int64_t index) {
    const int64_t row = index / across * piece_rows, column = index % across * width;
    body(row, rows - row < piece_rows ? rows - row : piece_rows, column,
         columns - column < width ? columns - column : width);
  };
  if (rows * columns < parallel_terms / (terms > 0 ? terms : 1)) {
    for (int64_t index = 0; index < down * across; index++) piece(index);
  } else {
    esp::parallel_for(down * across, piece);
  }
}

void multiply(const LinearKernels& kernels, const Product& p, int64_t rows, int64_t columns) {
  for_pieces(rows, columns, p.k, [&](int64_t row, int64_t down, int64_t column, int64_t across) {
    kernels.product(p, row, down, column, across);
  });
}

void multiply(const LinearKernels& kernels, const Dots& d, int64_t rows, int64_t columns) {
  for_pieces(rows, columns, d.k, [&](int64_t row, int64_t down, int64_t column, int64_t across) {
    kernels.dots(d, row, down, column, across);
  });
}

}  // namespace

esp_status esp_linear_forward(const esp_linear* model, const float* x, int64_t rows, float* z) {
  const LinearKernels* kernels;
  if (esp_status status = esp::select(esp::linear_variants, &kernels)) return status;
  if (esp_status status = check("forward", model, x, rows, z, true)) return status;
  const esp_linear& m = *model;
  if (m.transposed != 0) {
    multiply(*kernels, Product{x, m.features, 1, m.weight, m.outputs, z, m.outputs, m.bias, m.features}, rows,
             m.outputs);
  } else {
    multiply(*kernels, Dots{x, m.weight, z, m.outputs, m.bias, m.features}, rows, m.outputs);
  }
  return ESP_OK;
}

esp_status esp_linear_backward(const esp_linear* gradient, const float* x, int64_t rows, const float* s) {
  const LinearKernels* kernels;
  if (esp_status status = esp::select(esp::linear_variants, &kernels)) return status;
  if (esp_status status = check("backward", gradient, x, rows, s, true)) return status;
  const esp_linear& g = *gradient;
  if (g.transposed != 0) {
    multiply(*kernels, Product{x, 1, g.features, s, g.outputs, g.weight, g.outputs, nullptr, rows},
             g.features, g.outputs);
  } else {
    multiply(*kernels, Product{s, 1, g.outputs, x, g.features, g.weight, g.features, nullptr, rows},
             g.outputs, g.features);
  }
  if (g.bias != nullptr) {
    // A product with a column of ones.
    constexpr float one = 1;
    kernels->product(Product{&one, 0, 0, s, g.outputs, g.bias, g.outputs, nullptr, rows}, 0, 1, 0, g.outputs);
  }
  return ESP_OK;
}

esp_status esp_linear_backward_rows(const esp_linear* model, const float* s, int64_t rows, float* dx) {
  const LinearKernels* kernels;
  if (esp_status status = esp::select(esp::linear_variants, &kernels)) return status;
  if (esp_status status = check("backward_rows", model, dx, rows, s, true)) return status;
  const esp_linear& m = *model;
  if (m.transposed != 0) {
    multiply(*kernels, Dots{s, m.weight, dx, m.features, nullptr, m.outputs}, rows, m.features);
  } else {
    multiply(*kernels, Product{s, m.outputs, 1, m.weight, m.features, dx, m.features, nullptr, m.outputs},
             rows, m.features);
  }
  return ESP_OK;
}

esp_status esp_linear_squares(const esp_linear* model, const float* x, int64_t rows, const float* s,
                              double* n) {
  const LinearKernels* kernels;
  if (esp_status status = esp::select(esp::linear_variants, &kernels)) return status;
  if (esp_status status = check("squares", model, x, rows, s, false)) return status;
  if (rows > 0 && n == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "linear: squares into NULL");
  const double one = model->bias != nullptr ? 1 : 0;
  for (int64_t i = 0; i < rows; i++) {
    n[i] += kernels->squares(s + i * model->outputs, model->outputs) *
            (one + kernels->squares(x + i * model->features, model->features));
  }
  return ESP_OK;
}

esp_status esp_linear_descend(const esp_linear* model, const float* x, const float* s, double rate) {
  const LinearKernels* kernels;
  if (esp_status status = esp::select(esp::linear_variants, &kernels)) return status;
  if (esp_status status = check("descend", model, x, 1, s, true)) return status;
  const float minus_rate = static_cast<float>(-rate);
  if (!(rate >= 0 && std::isfinite(minus_rate))) {
    return esp::fail(ESP_INVALID_ARGUMENT, "linear: the rate is %g; a finite F32 of 0 or more is needed",
                     rate);
  }
  const esp_linear& m = *model;
  const bool across = m.transposed != 0;
  const float* const of_rows = across ? x : s;
  const float* const of_columns = across ? s : x;
  const int64_t rows = across ? m.features : m.outputs, columns = across ? m.outputs : m.features;
  const auto row = [&](int64_t r) {
    kernels->descend(m.weight + r * columns, of_columns, of_rows[r], minus_rate, columns);
  };
  if (rows * columns < parallel_terms) {
    for (int64_t r = 0; r < rows; r++) row(r);
  } else {
    esp::parallel_for((rows + piece_rows - 1) / piece_rows, [&](int64_t piece) {
      for (int64_t r = piece * piece_rows; r < rows && r < (piece + 1) * piece_rows; r++) row(r);
    });
  }
  if (m.bias != nullptr) {
    constexpr float one = 1;
    kernels->descend(m.bias, s, one, minus_rate, m.outputs);
  }
  return ESP_OK;
}
