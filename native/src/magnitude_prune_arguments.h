// What magnitude_prune refuses, on a processor and on a device.
#pragma once
#include "arguments.h"
#include "espalier/magnitude_prune.h"

namespace esp {

inline esp_status check_prune_list(const esp_prune_tensor* tensors, int64_t count) {
  if (esp_status status = check_list("magnitude_prune", tensors, count)) return status;
  for (int64_t t = 0; t < count; t++) {
    const esp_prune_tensor& tensor = tensors[t];
    if (esp_status status = check_tensor("magnitude_prune", t, tensor.weights, tensor.n, tensor.dtype)) return status;
  }
  return ESP_OK;
}

inline esp_status check_prune_rule(const esp_prune_rule* rule) {
  if (rule == nullptr) return fail(ESP_INVALID_ARGUMENT, "magnitude_prune: rule is NULL");
  switch (rule->kind) {
    case ESP_PRUNE_THRESHOLD:
      if (!(rule->threshold >= 0)) {
        return fail(ESP_INVALID_ARGUMENT, "magnitude_prune: threshold %g; 0 or more is needed",
                         static_cast<double>(rule->threshold));
      }
      return ESP_OK;
    case ESP_PRUNE_PATTERN:
      if (rule->group < 1 || rule->group > ESP_PRUNE_GROUP_MAX || rule->keep < 1 || rule->keep > rule->group) {
        return fail(ESP_INVALID_ARGUMENT, "magnitude_prune: pattern %d:%d; 1 <= n <= m <= %d is needed", rule->keep,
                         rule->group, ESP_PRUNE_GROUP_MAX);
      }
      return ESP_OK;
    case ESP_PRUNE_AMOUNT:
    case ESP_PRUNE_SPARSITY:
      if (!(rule->amount >= 0 && rule->amount <= 1)) {
        return fail(ESP_INVALID_ARGUMENT, "magnitude_prune: a fraction of %g; 0 to 1 is needed", rule->amount);
      }
      break;
    case ESP_PRUNE_COUNT:
      if (rule->count < 0) {
        return fail(ESP_INVALID_ARGUMENT, "magnitude_prune: %lld weights to prune",
                         static_cast<long long>(rule->count));
      }
      break;
    default:
      return fail(ESP_INVALID_ARGUMENT, "magnitude_prune: rule of kind %d", rule->kind);
  }
  if (rule->scope != ESP_PRUNE_GLOBAL && rule->scope != ESP_PRUNE_TENSOR) {
    return fail(ESP_INVALID_ARGUMENT, "magnitude_prune: scope %d", rule->scope);
  }
  return ESP_OK;
}

inline esp_status check_prune_pattern(const esp_prune_tensor* tensors, int64_t count, const esp_prune_rule& rule) {
  for (int64_t t = 0; t < count; t++) {
    const int64_t n = tensors[t].n, axis = tensors[t].axis, inner = tensors[t].inner;
    if (n == 0) continue;
    if (axis < 1 || inner < 1 || axis > n || inner > n / axis || n % (axis * inner) != 0) {
      return fail(ESP_INVALID_ARGUMENT,
                       "magnitude_prune: tensor %lld of %lld elements has no axis of %lld with %lld elements within",
                       static_cast<long long>(t), static_cast<long long>(n), static_cast<long long>(axis),
                       static_cast<long long>(inner));
    }
    if (axis % rule.group != 0) {
      return fail(ESP_INVALID_ARGUMENT,
                       "magnitude_prune: tensor %lld: an axis of %lld, which groups of %d do not divide",
                       static_cast<long long>(t), static_cast<long long>(axis), rule.group);
    }
  }
  return ESP_OK;
}

}  // namespace esp
