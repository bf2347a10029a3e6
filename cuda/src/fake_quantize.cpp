#include "fake_quantize.h"

#include "fake_quantize_arguments.h"

namespace {

constexpr const char* operation = "fake_quantize";

int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}

// One scale for all is one row.
esp::QuantizeEntry entry_of(const esp_quantized& tensor, int64_t n) {
  const bool one = tensor.channels == 1;
  return {tensor.x,
          tensor.y,
          tensor.q,
          tensor.gate,
          tensor.scale,
          tensor.zero_point,
          tensor.running,
          one ? 1 : tensor.outer,
          tensor.channels,
          one ? n : tensor.inner,
          n,
          0,
          esp::quantize_row_divisor(one ? n : tensor.inner),
          tensor.dtype,
          tensor.y_dtype};
}

// The parts of a tensor by list.
void count_parts(const esp_quantizer& quantizer, const esp::QuantizeEntry& t,
                 int64_t (&parts)[esp::quantize_lists]) {
  for (int list = 0; list < esp::quantize_lists; list++) parts[list] = 0;
  const bool observes = quantizer.observer != ESP_OBSERVER_NONE;
  if (!observes || t.y != nullptr || t.q != nullptr || t.gate != nullptr) {
    parts[esp::quantize_chunks] = ceil_div(t.n, esp::quantize_chunk);
  }
  if (!observes) return;
  const int64_t size = esp::size_of(t.dtype), packs = ceil_div(t.inner, 16 / size);
  constexpr int64_t longest = esp::quantize_threads * esp::quantize_long_packs;
  // Rows that begin within a byte of the gate would share it.
  if (t.n > 0 && t.outer == 1 && packs <= longest && (t.gate == nullptr || t.inner % 8 == 0)) {
    parts[esp::quantize_chunks] = 0;
    if (packs <= 32 * esp::quantize_packs) {
      parts[esp::quantize_rows_warp] = ceil_div(t.channels, esp::quantize_warps);
    } else {
      parts[packs <= esp::quantize_threads * esp::quantize_packs ? esp::quantize_rows_block
                                                                 : esp::quantize_rows_long] = t.channels;
    }
    return;
  }
  parts[esp::quantize_scales] = ceil_div(t.channels, esp::quantize_threads);
  if (t.n == 0) return;
  if (t.channels > 1 && t.outer > 1 && t.inner < esp::quantize_narrow) {
    const esp::QuantizeStrips strips = esp::quantize_strips(t.channels * t.inner, t.outer, size);
    parts[esp::quantize_ranges_columns] = strips.blocks * strips.strips;
  } else {
    parts[esp::quantize_ranges_rows] =
        ceil_div(t.outer * t.channels * ceil_div(t.inner, esp::quantize_piece), esp::quantize_warps);
  }
}

esp_status check(const esp_quantizer* quantizer, const esp_quantized& tensor, int64_t t, int64_t* n) {
  const long long index = t;
  if (esp_status status = esp::check_shape(operation, t, tensor.outer, tensor.channels, tensor.inner, n))
    return status;
  if (esp_status status = esp::check_tensor(operation, t, tensor.x, *n, tensor.dtype)) return status;
  if (tensor.y != nullptr && tensor.y_dtype != tensor.dtype && tensor.y_dtype != ESP_F32) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "%s: tensor %lld: y has element type %d; that of x (%d) or F32 is needed", operation,
                     index, tensor.y_dtype, tensor.dtype);
  }
  if (tensor.channels > 0 && tensor.scale == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: the scales of tensor %lld are NULL", operation, index);
  }
  if (quantizer->observer == ESP_OBSERVER_NONE) {
    if (tensor.zero_point == nullptr && (quantizer->qmin > 0 || quantizer->qmax < 0)) {
      return esp::fail(ESP_INVALID_ARGUMENT, "%s: tensor %lld: a zero point of 0, outside %d .. %d",
                       operation, index, quantizer->qmin, quantizer->qmax);
    }
  } else if (tensor.channels > 0) {
    if (tensor.zero_point == nullptr && quantizer->symmetric == 0) {
      return esp::fail(ESP_INVALID_ARGUMENT,
                       "%s: the zero points of tensor %lld are NULL, and affine observers write them",
                       operation, index);
    }
    if (tensor.running == nullptr && quantizer->observer == ESP_OBSERVER_MOVING_AVERAGE) {
      return esp::fail(ESP_INVALID_ARGUMENT, "%s: the running averages of tensor %lld are NULL", operation,
                       index);
    }
  }
  return ESP_OK;
}

}  // namespace

esp_status esp_cuda_fake_quantize_plan(const esp_quantizer* quantizer, const esp_quantized* tensors,
                                       int64_t count, esp_cuda_plan* plan, void* table) {
  if (plan == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: plan is NULL", operation);
  if (esp_status status = esp::check_quantizer(operation, quantizer)) return status;
  if (quantizer->observer == ESP_OBSERVER_MSE) {
    return esp::fail(ESP_UNSUPPORTED, "%s: the MSE observer is fake_quantize_clip", operation);
  }
  if (esp_status status = esp::check_list(operation, tensors, count)) return status;
  if (count > INT32_MAX)
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: %lld tensors", operation, static_cast<long long>(count));
  esp::PartLists<esp::quantize_lists> lists;
  int64_t parts[esp::quantize_lists], ranges = 0;
  for (int64_t t = 0; t < count; t++) {
    int64_t n = 0;
    if (esp_status status = check(quantizer, tensors[t], t, &n)) return status;
    count_parts(*quantizer, entry_of(tensors[t], n), parts);
    // The last block counts the blocks of several lists in 32 bits.
    if (!lists.count(parts, INT32_MAX / 4)) {
      return esp::fail(ESP_UNSUPPORTED, "%s: too many elements or channels for one call, at tensor %lld",
                       operation, static_cast<long long>(t));
    }
    if (parts[esp::quantize_scales] > 0) ranges += tensors[t].channels;
  }
  for (int list = 0; list < esp::quantize_lists; list++) plan->operation[list] = lists[list];
  plan->operation[esp::quantize_tensors] = count;
  plan->table_bytes = static_cast<int64_t>(sizeof(esp::QuantizeHead)) +
                      count * static_cast<int64_t>(sizeof(esp::QuantizeEntry)) + lists.bytes();
  plan->workspace_bytes = static_cast<int64_t>(sizeof(esp::QuantizeCall)) +
                          count * static_cast<int64_t>(sizeof(esp::QuantizeState)) +
                          ranges * static_cast<int64_t>(sizeof(esp::QuantizeRange));
  if (table == nullptr) return ESP_OK;

  auto* const head = static_cast<esp::QuantizeHead*>(table);
  *head = {*quantizer, {}};
  auto* const entries = reinterpret_cast<esp::QuantizeEntry*>(head + 1);
  lists.begin(reinterpret_cast<esp::Part*>(entries + count));
  ranges = 0;
  for (int64_t t = 0; t < count; t++) {
    entries[t] = entry_of(tensors[t], tensors[t].outer * tensors[t].channels * tensors[t].inner);
    entries[t].ranges = ranges;
    count_parts(*quantizer, entries[t], parts);
    if (parts[esp::quantize_scales] > 0) ranges += tensors[t].channels;
    lists.write(t, parts);
  }
  return ESP_OK;
}

esp_status esp_cuda_fake_quantize_backward(const void* grad_y, const uint8_t* gate, void* grad_x, int64_t n,
                                           esp_dtype dtype, void* stream) {
  if (esp_status status = esp::check_tensor("fake_quantize_backward", 0, grad_y, n, dtype)) return status;
  if (n == 0) return ESP_OK;
  if (gate == nullptr || grad_x == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize_backward: %s is NULL",
                     gate == nullptr ? "gate" : "grad_x");
  }
  if (n / esp::quantize_chunk >= INT32_MAX) {
    return esp::fail(ESP_UNSUPPORTED, "fake_quantize_backward: %lld elements in one call",
                     static_cast<long long>(n));
  }
  return esp::launch_fake_quantize_backward(grad_y, gate, grad_x, n, dtype, stream);
}

esp_status esp_cuda_dequantize(const esp_dequantized* tensor, void* stream) {
  if (tensor == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "dequantize: the tensor is NULL");
  int64_t n = 0;
  if (esp_status status =
          esp::check_shape("dequantize", 0, tensor->outer, tensor->channels, tensor->inner, &n))
    return status;
  if (esp_status status = esp::check_tensor("dequantize", 0, tensor->y, n, tensor->dtype)) return status;
  if (n == 0) return ESP_OK;
  if (tensor->q == nullptr || tensor->scale == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "dequantize: %s is NULL", tensor->q == nullptr ? "q" : "scale");
  }
  if (n / esp::quantize_chunk >= INT32_MAX) {
    return esp::fail(ESP_UNSUPPORTED, "dequantize: %lld elements in one call", static_cast<long long>(n));
  }
  return esp::launch_dequantize(*tensor, n, stream);
}
