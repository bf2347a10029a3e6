#include "espalier/bandwidth.h"

#include "arguments.h"
#include "bandwidth_kernel.h"
#include "thread_pool.h"

namespace {
constexpr int64_t piece = 65536;                  // elements
bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }
}  // namespace

esp_status esp_traffic(int32_t kind, float* a, float* b, float* c, float* d, int64_t n) {
  const esp::BandwidthKernels* kernels;
  if (esp_status status = esp::select(esp::bandwidth_variants, &kernels)) return status;
  const bool needs_b = kind == ESP_TRAFFIC_COPY || kind >= ESP_TRAFFIC_STEP;
  const bool needs_c = kind >= ESP_TRAFFIC_STEP, needs_d = kind == ESP_TRAFFIC_STEP_COPY;
  if (kind < 0 || kind > ESP_TRAFFIC_STEP_COPY || n < 0 || n > esp::max_elements || n % 16 != 0 || a == nullptr ||
      (needs_b && b == nullptr) || (needs_c && c == nullptr) || (needs_d && d == nullptr)) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "traffic: kind 0 to 4, its buffers, and a multiple of 16 elements are needed (kind %d, %lld elements)",
                     kind, static_cast<long long>(n));
  }
  const bool streaming = n * 4 > esp::cache_bytes && aligned(kind == ESP_TRAFFIC_COPY ? b : d);
  const auto at = [](float* p, int64_t start) { return p == nullptr ? nullptr : p + start; };
  esp::parallel_for((n + piece - 1) / piece, [&](int64_t i) {
    const int64_t start = i * piece;
    kernels->traffic(kind, at(a, start), at(b, start), at(c, start), at(d, start), n - start < piece ? n - start : piece,
                     1.0f, streaming);
  });
  return ESP_OK;
}
