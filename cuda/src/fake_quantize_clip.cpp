#include "fake_quantize_clip.h"

#include "fake_quantize_arguments.h"

namespace {

constexpr const char* operation = "fake_quantize_clip";

esp::ClipEntry entry_of(const esp_quantized& t) {
  const esp::SumOrder order = esp::sum_order(t.outer, t.channels, t.inner);
  return {t.x, t.scale, t.zero_point, t.running, order, 0, 0, t.dtype, esp::sum_group(order)};
}

esp_status check(const esp_quantizer* quantizer, const esp_quantized& tensor, int64_t t) {
  const long long index = t;
  int64_t n = 0;
  if (esp_status status = esp::check_shape(operation, t, tensor.outer, tensor.channels, tensor.inner, &n))
    return status;
  if (esp_status status = esp::check_tensor(operation, t, tensor.x, n, tensor.dtype)) return status;
  if (tensor.channels == 0) return ESP_OK;
  const char* const missing = tensor.scale == nullptr                                     ? "scale"
                              : tensor.running == nullptr                                 ? "running"
                              : tensor.zero_point == nullptr && quantizer->symmetric == 0 ? "zero_point"
                                                                                          : nullptr;
  if (missing == nullptr) return ESP_OK;
  return esp::fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld: %s is NULL", operation, index, missing);
}

}  // namespace

esp_status esp_cuda_fake_quantize_clip_plan(const esp_quantizer* quantizer, const esp_quantized* tensors,
                                            int64_t count, esp_cuda_plan* plan, void* table) {
  if (plan == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: plan is NULL", operation);
  if (esp_status status = esp::check_quantizer(operation, quantizer)) return status;
  if (quantizer->observer != ESP_OBSERVER_MSE)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: observer %d; MSE (3) is needed", operation,
                     quantizer->observer);
  if (esp_status status = esp::check_list(operation, tensors, count)) return status;
  if (count > INT32_MAX)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: %lld tensors", operation, static_cast<long long>(count));
  esp::PartLists<esp::sum_lists> lists;
  int64_t parts[esp::sum_lists], partials = 0, channels = 0;
  for (int64_t t = 0; t < count; t++) {
    if (esp_status status = check(quantizer, tensors[t], t)) return status;
    const esp::ClipEntry entry = entry_of(tensors[t]);
    esp::count_sum_parts(entry.order, entry.group, true, parts);
    if (!lists.count(parts, INT32_MAX)) {
      return esp::fail(ESP_UNSUPPORTED, "%s: too many elements or channels for one call, at tensor %lld",
                       operation, static_cast<long long>(t));
    }
    partials += entry.order.partials();
    channels += entry.order.channels;
  }
  for (int list = 0; list < esp::sum_lists; list++) plan->operation[list] = lists[list];
  plan->operation[esp::sum_tensors] = count;
  plan->operation[esp::clip_steps] = quantizer->clip_steps;
  plan->operation[esp::clip_all_channels] = channels;
  plan->table_bytes = static_cast<int64_t>(sizeof(esp::QuantizeHead)) +
                      count * static_cast<int64_t>(sizeof(esp::ClipEntry)) + lists.bytes();
  plan->workspace_bytes = channels * static_cast<int64_t>(sizeof(esp::ClipBest)) +
                          partials * static_cast<int64_t>(sizeof(esp::ClipErrors));
  if (table == nullptr) return ESP_OK;

  auto* const head = static_cast<esp::QuantizeHead*>(table);
  *head = {*quantizer, {}};
  auto* const entries = reinterpret_cast<esp::ClipEntry*>(head + 1);
  lists.begin(reinterpret_cast<esp::Part*>(entries + count));
  partials = channels = 0;
  for (int64_t t = 0; t < count; t++) {
    entries[t] = entry_of(tensors[t]);
    entries[t].partials = partials;
    entries[t].channel = channels;
    partials += entries[t].order.partials();
    channels += entries[t].order.channels;
    esp::count_sum_parts(entries[t].order, entries[t].group, true, parts);
    lists.write(t, parts);
  }
  return ESP_OK;
}
