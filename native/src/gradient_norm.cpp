#include "espalier/gradient_norm.h"

#include <cmath>
#include <memory>
#include <new>

#include "arguments.h"
#include "gradient_norm_kernel.h"
#include "gradient_norm_order.h"
#include "thread_pool.h"

namespace {
using esp::gradient_norm_block;
using esp::gradient_norm_lanes;

// Blocks taken at once: prefetching from memory starts anew with each task. What fits caches is shared out block by block.
int64_t task_blocks(int64_t blocks) { return blocks < 256 ? 1 : 8; }

int64_t blocks_of(int64_t n) { return (n + gradient_norm_block - 1) / gradient_norm_block; }
}  // namespace

esp_status esp_gradient_norm(const esp_gradient* gradients, int64_t count, esp_gradient_norm_result* result) {
  const esp::GradientNormKernels* kernels;
  if (esp_status status = esp::select(esp::gradient_norm_variants, &kernels)) return status;
  if (result == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "gradient_norm: result is NULL");
  if (esp_status status = esp::check_list("gradient_norm", gradients, count)) return status;
  int64_t blocks = 0, bytes = 0;
  for (int64_t t = 0; t < count; t++) {
    const esp_gradient& g = gradients[t];
    if (esp_status status = esp::check_tensor("gradient_norm", t, g.gradient, g.n, g.dtype)) return status;
    blocks += blocks_of(g.n);
    bytes += g.n * esp::size_of(g.dtype);
  }
  // The first block of each tensor, to find the tensor of a block by bisection.
  std::unique_ptr<int64_t[]> first(new (std::nothrow) int64_t[static_cast<size_t>(count) + 1]);
  std::unique_ptr<esp::GradientBlockSum[]> sums(new (std::nothrow) esp::GradientBlockSum[static_cast<size_t>(blocks)]);
  if (!first || !sums) return esp::fail(ESP_OUT_OF_MEMORY, "gradient_norm: no memory for %lld blocks", (long long)blocks);
  first[0] = 0;
  for (int64_t t = 0; t < count; t++) first[t + 1] = first[t] + blocks_of(gradients[t].n);

  const auto run = [&](int64_t block) {
    const int64_t t = esp::find_part(first.get(), count, block);
    const esp_gradient& g = gradients[t];
    const int64_t start = (block - first[t]) * gradient_norm_block;
    const int64_t n = g.n - start < gradient_norm_block ? g.n - start : gradient_norm_block;
    sums[block] = kernels->sum(g.dtype, {static_cast<const char*>(g.gradient) + start * esp::size_of(g.dtype),
                                         g.mask == nullptr ? nullptr : g.mask + start / 8,
                                         g.gate == nullptr ? nullptr : g.gate + start / 8, n});
  };
  if (bytes < esp::parallel_bytes) {
    for (int64_t block = 0; block < blocks; block++) run(block);
  } else {
    const int64_t at_once = task_blocks(blocks);
    esp::parallel_for((blocks + at_once - 1) / at_once, [&](int64_t task) {
      for (int64_t block = task * at_once; block < (task + 1) * at_once && block < blocks; block++) run(block);
    });
  }

  double lanes[gradient_norm_lanes] = {};
  int64_t non_finite = 0;
  for (int64_t block = 0; block < blocks; block++) {
    lanes[block % gradient_norm_lanes] += sums[block].squares;
    non_finite += sums[block].non_finite;
  }
  for (int half = gradient_norm_lanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  }
  *result = {std::sqrt(lanes[0]), non_finite};
  return ESP_OK;
}
