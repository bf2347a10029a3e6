#include "fake_quantize_scale_gradient.h"

#include <cmath>

#include "fake_quantize_arguments.h"

namespace {

constexpr const char* operation = "fake_quantize_scale_gradient";

esp::GradientEntry entry_of(const esp_scale_gradient& g) {
  const esp::SumOrder order = esp::sum_order(g.outer, g.channels, g.inner);
  return {g.x,
          g.grad_y,
          g.grad_x,
          g.scale,
          g.zero_point,
          g.grad_scale,
          g.grad_zero_point,
          order,
          0,
          g.factor,
          g.dtype,
          esp::sum_group(order),
          0};
}

// Whether a channel's sums are its chunk's, so that nothing is left to be added up.
bool is_direct(const esp::GradientEntry& t) {
  return !t.order.columns() && t.order.chunks == 1;
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
  esp::PartLists<esp::sum_lists> lists;
  int64_t parts[esp::sum_lists], partials = 0;
  for (int64_t t = 0; t < count; t++) {
    if (esp_status status = check(quantizer, gradients[t], t)) return status;
    const esp::GradientEntry entry = entry_of(gradients[t]);
    esp::count_sum_parts(entry.order, entry.group, !is_direct(entry), parts);
    // The last block counts the blocks of all lists in 32 bits.
    if (!lists.count(parts, INT32_MAX / 4)) {
      return esp::fail(ESP_UNSUPPORTED, "%s: too many elements or channels for one call, at tensor %lld",
                       operation, static_cast<long long>(t));
    }
    if (!is_direct(entry)) partials += entry.order.partials();
  }
  for (int list = 0; list < esp::sum_lists; list++) plan->operation[list] = lists[list];
  plan->operation[esp::sum_tensors] = count;
  plan->table_bytes = static_cast<int64_t>(sizeof(esp::QuantizeHead)) +
                      count * static_cast<int64_t>(sizeof(esp::GradientEntry)) + lists.bytes();
  plan->workspace_bytes = static_cast<int64_t>(sizeof(esp::GradientCall)) +
                          count * static_cast<int64_t>(sizeof(esp::GradientState)) +
                          partials * static_cast<int64_t>(sizeof(esp::GradientSums));
  if (table == nullptr) return ESP_OK;

  auto* const head = static_cast<esp::QuantizeHead*>(table);
  *head = {*quantizer, {}};
  auto* const entries = reinterpret_cast<esp::GradientEntry*>(head + 1);
  lists.begin(reinterpret_cast<esp::Part*>(entries + count));
  partials = 0;
  for (int64_t t = 0; t < count; t++) {
    entries[t] = entry_of(gradients[t]);
    entries[t].partials = partials;
    if (!is_direct(entries[t])) partials += entries[t].order.partials();
    esp::count_sum_parts(entries[t].order, entries[t].group, !is_direct(entries[t]), parts);
    lists.write(t, parts);
  }
  return ESP_OK;
}
