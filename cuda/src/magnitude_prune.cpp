#include "magnitude_prune.h"

#include "arguments.h"
#include "magnitude_prune_arguments.h"

namespace {

// Whether a thread has each group of the tensor in one pack.
bool group_in_pack(const esp_prune_tensor& t, int32_t group) {
  const int64_t pack = 16 / esp::size_of(t.dtype);
  return t.inner == 1 && group <= pack && pack % group == 0;
}

}  // namespace

esp_status esp_cuda_magnitude_prune_plan(const esp_prune_tensor* tensors, int64_t count,
                                         const esp_prune_rule* rule, esp_cuda_plan* plan, void* table) {
  if (plan == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "magnitude_prune: plan is NULL");
  if (esp_status status = esp::check_prune_rule(rule)) return status;
  if (esp_status status = esp::check_prune_list(tensors, count)) return status;
  const bool pattern = rule->kind == ESP_PRUNE_PATTERN;
  if (pattern) {
    if (esp_status status = esp::check_prune_pattern(tensors, count, *rule)) return status;
  }
  int64_t elements = 0, bytes = 0, chunks = 0, decided = 0;
  int granularity = 16;
  bool masked = false, decides = false;
  for (int64_t t = 0; t < count; t++) {
    const esp_prune_tensor& tensor = tensors[t];
    elements += tensor.n;
    bytes += tensor.n * esp::size_of(tensor.dtype);
    chunks += tensor.n / esp::prune_chunk + (tensor.n % esp::prune_chunk != 0);
    masked |= tensor.mask_in != nullptr;
    const int own = tensor.dtype == ESP_BF16 ? 16 : tensor.dtype == ESP_F16 ? 13 : 0;
    if (tensor.n > 0 && own < granularity) granularity = own;
    decides |= pattern && !group_in_pack(tensor, rule->group);
    decided += (tensor.n + 31) / 32 * 4;
  }
  if (!decides) decided = 0;
  if (count > INT32_MAX || chunks > INT32_MAX || elements > int64_t{1} << 53) {
    return esp::fail(ESP_UNSUPPORTED, "magnitude_prune: %lld tensors with %lld weights",
                     static_cast<long long>(count), static_cast<long long>(elements));
  }
  const bool selects = rule->kind != ESP_PRUNE_THRESHOLD && !pattern;
  const int64_t scopes = selects && rule->scope == ESP_PRUNE_TENSOR ? count : 1;
  // 16-bit keys tie by the thousand: two histograms settle them, a bracket would not.
  const bool sampled =
      selects && rule->scope == ESP_PRUNE_GLOBAL && granularity == 0 && elements > esp::prune_sampled;
  const int64_t records = selects ? chunks * static_cast<int64_t>(sizeof(esp::PruneRecord)) : 0;
  int64_t capacity = 0;
  if (sampled) {
    capacity = ((int64_t{15} << 16) + bytes / 50 - (records < bytes / 100 ? records : bytes / 100)) / 4;
    if (capacity > elements && elements > esp::prune_samples) capacity = elements;
    if (capacity > INT32_MAX) capacity = INT32_MAX;
  }
  const int64_t histograms = selects ? (scopes + (sampled ? 1 : 0)) * esp::prune_bins * 8 : 0;
  *plan = {count * static_cast<int64_t>(sizeof(esp_prune_tensor)) + 2 * (count + 1) * 8 +
               chunks * static_cast<int64_t>(sizeof(esp::PruneChunk)),
           static_cast<int64_t>(sizeof(esp::PruneState)) +
               scopes * static_cast<int64_t>(sizeof(esp::PruneScope)) + histograms + records + capacity * 4 +
               decided,
           {count, chunks, scopes, rule->kind, pattern ? rule->group : rule->scope, capacity,
            (masked ? esp::prune_masked : 0) | (sampled ? esp::prune_samples_flag : 0) |
                (decided > 0 ? esp::prune_decides : 0) |
                static_cast<int64_t>(granularity) << esp::prune_granularity_shift,
            elements}};
  if (table == nullptr) return ESP_OK;
  auto* const copies = static_cast<esp_prune_tensor*>(table);
  auto* const first_element = reinterpret_cast<int64_t*>(copies + count);
  int64_t* const first_chunk = first_element + count + 1;
  auto* chunk = reinterpret_cast<esp::PruneChunk*>(first_chunk + count + 1);
  first_element[0] = first_chunk[0] = 0;
  for (int64_t t = 0; t < count; t++) {
    copies[t] = tensors[t];
    int32_t index = 0;
    for (int64_t i = 0; i < tensors[t].n; i += esp::prune_chunk)
      *chunk++ = {static_cast<int32_t>(t), index++};
    first_element[t + 1] = first_element[t] + tensors[t].n;
    first_chunk[t + 1] = first_chunk[t] + index;
  }
  return ESP_OK;
}
