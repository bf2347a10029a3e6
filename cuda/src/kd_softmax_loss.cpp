#include "kd_softmax_loss.h"

namespace {

constexpr int64_t aligned(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// Where the parts of the workspace lie in it.
struct Layout {
  int64_t segments, terms, arrived, far, row, sums, bytes;
};

esp_status lay_out(const esp_kd_softmax_loss_arguments* a, Layout* layout) {
  if (a == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: arguments is NULL", esp::kd_operation);
  if (esp_status status = esp::check_kd(*a)) return status;
  const int64_t segments = (a->classes - 1) / esp::kd_segment + 1;
  if (a->rows > INT32_MAX / 2 / segments) {
    return esp::fail(ESP_UNSUPPORTED, "%s: %lld rows of %lld classes in one call", esp::kd_operation,
                     static_cast<long long>(a->rows), static_cast<long long>(a->classes));
  }
  const auto size = [](size_t bytes) { return static_cast<int64_t>(bytes); };
  layout->segments = segments;
  layout->terms = aligned(size(sizeof(esp::KdState)));
  layout->arrived = layout->terms + aligned(3 * a->rows * size(sizeof(double)));
  layout->far = layout->arrived + aligned(a->rows * size(sizeof(uint32_t)));
  layout->row = layout->far + aligned(a->rows * size(sizeof(int64_t)));
  layout->sums = layout->row + aligned(a->rows * size(sizeof(esp::KdRow)));
  layout->bytes = layout->sums + aligned(a->rows * segments * size(sizeof(esp::KdSegmentSums)));
  return ESP_OK;
}

}  // namespace

// A block has at most a third of a multiprocessor's shared memory, so that one loads while others compute.
// Rows that are larger are shared by a cluster; what a cluster cannot hold is read again, from the cache,
// because few rows are on their way.
esp::KdHold esp::kd_hold(const esp_kd_softmax_loss_arguments& a, const DeviceLimits& limits) {
  const auto same = [](const esp_logits& x, const esp_logits& y) {
    return x.data == y.data && x.stride == y.stride && x.dtype == y.dtype;
  };
  const bool soft = a.teacher.data != nullptr;
  if (a.classes <= kd_segment || a.classes > INT32_MAX / 2 || a.student.dtype == ESP_F32) return {};
  if (soft && a.teacher.dtype != a.student.dtype) return {};
  if (a.bound.data != nullptr && !same(a.bound, a.teacher)) return {};
  if (a.gradient != nullptr && a.gradient_dtype != a.student.dtype) return {};
  constexpr int64_t of_a_block = 2 << 10;  // the system's and the kernel's own
  const int64_t layer = (soft ? 2 : 1) * kd_threads * kd_pack * 2, columns = kd_threads * kd_pack;
  const int64_t most = (limits.shared_per_multiprocessor / 3 - of_a_block) / layer;
  int64_t blocks = 1;
  while (limits.clusters && blocks < kd_most_blocks && a.classes > most * columns * blocks) blocks *= 2;
  KdHold hold;
  hold.blocks = static_cast<int32_t>(blocks);
  hold.share = ((a.classes - 1) / blocks / kd_pack + 1) * kd_pack;
  hold.layers = static_cast<int32_t>((hold.share - 1) / columns + 1);
  hold.held = hold.layers < most ? hold.layers : static_cast<int32_t>(most);
  hold.shared_bytes = hold.held * layer;
  hold.most_bytes = most * layer;
  return hold;
}

esp_status esp_cuda_kd_softmax_loss_workspace(const esp_kd_softmax_loss_arguments* arguments,
                                              int64_t* bytes) {
  if (bytes == nullptr) return esp::fail(ESP_INVALID_ARGUMENT, "%s: bytes is NULL", esp::kd_operation);
  Layout layout = {};
  if (esp_status status = lay_out(arguments, &layout)) return status;
  *bytes = layout.bytes;
  return ESP_OK;
}

esp_status esp_cuda_kd_softmax_loss(const esp_kd_softmax_loss_arguments* arguments, void* workspace,
                                    esp_cuda_kd_softmax_loss_result* result, void* stream) {
  Layout layout = {};
  if (esp_status status = lay_out(arguments, &layout)) return status;
  if (workspace == nullptr || result == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: %s is NULL", esp::kd_operation,
                     workspace == nullptr ? "workspace" : "result");
  }
  char* const memory = static_cast<char*>(workspace);
  esp::KdCall call;
  call.arguments = *arguments;
  if (arguments->beta == 0) {
    call.arguments.bound.data = nullptr;
  } else if (arguments->bound.data == nullptr) {
    call.arguments.bound = arguments->teacher;
  }
  call.with_labels = esp::powers_of(*arguments, true);
  call.without_labels = esp::powers_of(*arguments, false);
  call.temperature_squared = arguments->temperature * arguments->temperature;
  call.segments = layout.segments;
  esp::DeviceLimits limits;
  if (esp_status status = esp::device_limits(&limits)) return status;
  call.hold = esp::kd_hold(call.arguments, limits);
  call.state = reinterpret_cast<esp::KdState*>(memory);
  call.terms = reinterpret_cast<double*>(memory + layout.terms);
  call.arrived = reinterpret_cast<uint32_t*>(memory + layout.arrived);
  call.far = reinterpret_cast<int64_t*>(memory + layout.far);
  call.row = reinterpret_cast<esp::KdRow*>(memory + layout.row);
  call.sums = reinterpret_cast<esp::KdSegmentSums*>(memory + layout.sums);
  call.result = result;
  return esp::launch_kd_softmax_loss(call, limits, stream);
}
