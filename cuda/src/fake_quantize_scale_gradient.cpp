#include "fake_quantize_scale_gradient.h"

#include <cmath>
#include <cstring>

#include "fake_quantize_arguments.h"

namespace {

constexpr const char* operation = "fake_quantize_scale_gradient";

int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}

esp::GradientEntry entry_of(const esp_scale_gradient& g) {
  const esp::SumOrder order = esp::sum_order(g.outer, g.channels, g.inner);
  int32_t group = 1;
  while (group < order.segments && group < esp::chunk_segments) group *= 2;
  return {g.x,      g.grad_y, g.grad_x, g.scale, g.zero_point, g.grad_scale, g.grad_zero_point, order, 0,
          g.factor, g.dtype,  group,    0};
}

// Whether a channel's sums are its chunk's, so that nothing is left to be added up.
bool is_direct(const esp::GradientEntry& t) {
  return !t.order.columns() && t.order.chunks == 1;
}

// The parts of a tensor by list.
void count_parts(const esp::GradientEntry& t, int64_t* parts) {
  parts[esp::gradient_rows] = parts[esp::gradient_columns] = 0;
  if (t.order.columns()) {
    parts[esp::gradient_columns] = t.order.chunks * ceil_div(t.order.matrix.width, esp::gradient_strip);
  } else {
    parts[esp::gradient_rows] = ceil_div(t.order.channels * t.order.chunks, esp::gradient_slots(t.group));
  }
  parts[esp::gradient_sums] = is_direct(t) ? 0 : ceil_div(t.order.channels, esp::gradient_warps);
}

esp_status check(const esp_quantizer* quantizer, const esp_scale_gradient& g, int64_t t) {
  const long long index = t;
  int64_t n = 0;
  if (esp_status status = esp::check_shape(operation, t, g.outer, g.channels, g.inner, &n)) return status;
  if (esp_status status = esp::check_tensor(operation, t, g.x, n, g.dtype)) return status;
  if (n > 0 && g.grad_y == nullptr)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld: grad_y is NULL", operation, index);
  if (g.channels > 0 && (g.scale == nullptr || g.grad_scale == nullptr)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld: %s is NULL", operation, index,
                     g.scale == nullptr ? "scale" : "grad_scale");
  }
  if (g.zero_point == nullptr && (quantizer->qmin > 0 || quantizer->qmax < 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld: a zero point of 0, outside %d .. %d", operation,
                     index, quantizer->qmin, quantizer->qmax);
  }
  if (!std::isfinite(g.factor)) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld: a factor of %g", operation, index,
                     static_cast<double>(g.factor));
  }
  return ESP_OK;
}

}  // namespace

esp_status esp_cuda_fake_quantize_scale_gradient_plan(const esp_quantizer* quantizer,
                                                      const esp_scale_gradient* gradients, int64_t count,
                                                      esp_cuda_plan* plan, void* table) {
  if (plan == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: plan is NULL", operation);
  if (esp_status status = esp::check_grid(operation, quantizer)) return status;
  if (esp_status status = esp::check_list(operation, gradients, count)) return status;
  if (count > INT32_MAX)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: %lld tensors", operation, static_cast<long long>(count));
  int64_t totals[esp::gradient_lists] = {}, partials = 0;
  for (int64_t t = 0; t < count; t++) {
    if (esp_status status = check(quantizer, gradients[t], t)) return status;
    const esp::GradientEntry entry = entry_of(gradients[t]);
    int64_t parts[esp::gradient_lists];
    count_parts(entry, parts);
    for (int list = 0; list < esp::gradient_lists; list++) {
      totals[list] += parts[list];
      if (totals[list] > INT32_MAX / 4) {  // the last block counts the blocks of all lists in 32 bits
        return esp::fail(ESP_UNSUPPORTED, "%s: too many elements or channels for one call, at tensor %lld",
                         operation, static_cast<long long>(t));
      }
    }
    if (!is_direct(entry)) partials += entry.order.partials();
  }
  int64_t all = 0;
  for (int list = 0; list < esp::gradient_lists; list++) {
    plan->operation[list] = totals[list];
    all += totals[list];
  }
  plan->operation[esp::gradient_tensors] = count;
  plan->table_bytes = static_cast<int64_t>(sizeof(esp::GradientHead)) +
                      count * static_cast<int64_t>(sizeof(esp::GradientEntry)) +
                      all * static_cast<int64_t>(sizeof(esp::GradientPart));
  plan->workspace_bytes = static_cast<int64_t>(sizeof(esp::GradientCall)) +
                          count * static_cast<int64_t>(sizeof(esp::GradientState)) +
                          partials * static_cast<int64_t>(sizeof(esp::GradientSums));
  if (table == nullptr) return ESP_OK;

  std::memset(table, 0, sizeof(esp::GradientHead));
  auto* const head = static_cast<esp::GradientHead*>(table);
  head->quantizer = *quantizer;
  auto* const entries = reinterpret_cast<esp::GradientEntry*>(head + 1);
  esp::GradientPart* next[esp::gradient_lists];
  next[0] = reinterpret_cast<esp::GradientPart*>(entries + count);
  for (int list = 1; list < esp::gradient_lists; list++) next[list] = next[list - 1] + totals[list - 1];
  partials = 0;
  for (int64_t t = 0; t < count; t++) {
    entries[t] = entry_of(gradients[t]);
    entries[t].partials = partials;
    if (!is_direct(entries[t])) partials += entries[t].order.partials();
    int64_t parts[esp::gradient_lists];
    count_parts(entries[t], parts);
    for (int list = 0; list < esp::gradient_lists; list++) {
      for (int32_t index = 0; index < parts[list]; index++) *next[list]++ = {static_cast<int32_t>(t), index};
    }
  }
  return ESP_OK;
}
