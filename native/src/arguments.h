// Checks that every operation makes of what it is given, and small helpers over lists of tensors.
#pragma once
#include "espalier/common.h"
#include "status.h"

namespace esp {

constexpr int64_t max_elements = INT64_MAX / 16;  // so that byte counts cannot overflow

// Bytes of an element; 0 for an unknown type.
inline int64_t size_of(esp_dtype dtype) { return dtype == ESP_F32 ? 4 : dtype == ESP_BF16 || dtype == ESP_F16 ? 2 : 0; }

inline esp_status check_list(const char* operation, const void* list, int64_t count) {
  if (count < 0 || (count > 0 && list == nullptr)) {
    return fail(ESP_INVALID_ARGUMENT, "%s: a list of %lld tensors at %p", operation, static_cast<long long>(count), list);
  }
  return ESP_OK;
}

inline esp_status check_tensor(const char* operation, int64_t index, const void* data, int64_t n, esp_dtype dtype) {
  if (n < 0 || n > max_elements) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld has %lld elements", operation, static_cast<long long>(index),
                static_cast<long long>(n));
  }
  if (size_of(dtype) == 0) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld has element type %d; F32 (0), BF16 (1) or F16 (2) is needed",
                operation, static_cast<long long>(index), dtype);
  }
  if (n > 0 && data == nullptr) {
    return fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld is NULL", operation, static_cast<long long>(index));
  }
  return ESP_OK;
}

// The t with first[t] <= part < first[t + 1], where first ascends over count + 1 entries.
inline int64_t find_part(const int64_t* first, int64_t count, int64_t part) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (first[middle] <= part) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace esp
