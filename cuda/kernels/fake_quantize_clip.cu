// fake_quantize_clip: of the parts 1 - i * (1 - smallest) / steps of each channel's range the one whose grid
// gives the smallest sum of (y - x)^2. Formulas in espalier/fake_quantize.h.
//
// Layout: [outer, channels, inner], row-major. A thread has packs of 4 elements. Numerics: F32 up to an
// element's error, sums in double, see fake_quantize_sums.cuh. Idea: four ratios are tried for each element
// that is read; a launch for each four adds up their errors chunk by chunk, another adds up the chunks and
// keeps the best. Bytes: x once for four ratios.
#include "fake_quantize_clip.h"

#include "fake_quantize_grid.cuh"
#include "fake_quantize_sums.cuh"
#include "kernel.cuh"
#include "status.h"

namespace {

using esp::ClipBest;
using esp::ClipEntry;
using esp::ClipErrors;
using esp::Pack;
using esp::Part;
using esp::QuantizeHead;
using esp::SumOrder;

constexpr int ratios = esp::clip_ratios;
constexpr double infinity = __builtin_huge_val();

// What every kernel is given.
struct Call {
  const QuantizeHead* head;
  const ClipEntry* tensors;
  const Part* parts;
  ClipBest* best;
  ClipErrors* partials;
  int32_t first;  // ratio of the four
};

struct Candidate {
  float scale;
  int32_t zero_point;
};
// The scale of a part of a channel's range, as the CPU computes it.
__device__ __forceinline__ Candidate candidate_of(const esp_quantizer& q, const ClipEntry& t, int64_t channel,
                                                  int32_t index) {
  float low = t.running[channel], high = t.running[t.order.channels + channel];
  if (q.symmetric != 0 && low <= high) {
    high = -low > high ? -low : high;
    low = -high;
  }
  const float ratio =
      1.0f - static_cast<float>(index) * (1.0f - q.clip_smallest) / static_cast<float>(q.clip_steps);
  Candidate c;
  c.scale = esp::observed_scale(q, low * ratio, high * ratio, &c.zero_point);
  return c;
}
// Scales that cannot be used are tried as 1 and never chosen.
__device__ __forceinline__ Grid grid_of(const esp_quantizer& q, const ClipEntry& t, int64_t channel,
                                        int32_t index) {
  const Candidate c = candidate_of(q, t, channel, index);
  return grid_from(esp::usable_scale(c.scale) ? c.scale : 1.0f,
                   t.zero_point == nullptr ? 0.0f : static_cast<float>(c.zero_point),
                   q.rounding == ESP_ROUND_DIVIDE);
}

__device__ __forceinline__ void add_error(double& sum, const Rule& rule, const Grid& grid, float x) {
  const float position = rintf(rule.divide ? x / grid.scale : x * grid.by) + grid.zero;
  const float y = (clamped(position, rule) - grid.zero) * grid.scale;
  const bool finite = (__float_as_uint(x) & 0x7fffffff) < 0x7f800000;
  const double e = finite ? static_cast<double>(y - x) : 0.0;
  sum = fma(e, e, sum);
}

// add(j, element j of a pack), for all elements at some places of a tensor.
template <class T, class Add>
__device__ __forceinline__ void each_element(const ClipEntry& t, const Places& places, const Add& add) {
  esp::RawPack<n, T> pack[unrolled];
#pragma unroll
  for (int k = 0; k < unrolled; k++) {
    const T* const x = static_cast<const T*>(t.x) + places.at[k];
    ESP_GLOBAL(x);
    pack[k] = esp::load_raw<n>(x, places.left[k]);
  }
#pragma unroll
  for (int k = 0; k < unrolled; k++) {
    const auto x = esp::bits_as<Pack<T, n>>(pack[k]);
#pragma unroll
    for (int j = 0; j < n; j++) {
      if (j < places.left[k]) add(j, esp::to_float(x.at[j]));
    }
  }
}

// What a block shares: a sum for each ratio, thread and element of a pack.
__device__ __forceinline__ void share(double* sums, const double (&own)[ratios][n]) {
#pragma unroll
  for (int c = 0; c < ratios; c++) {
#pragma unroll
    for (int j = 0; j < n; j++) sums[(c * threads + static_cast<int>(threadIdx.x)) * n + j] = own[c][j];
  }
  __syncthreads();
}
__device__ __forceinline__ ClipErrors shared_errors(const double* sums, int place) {
  ClipErrors errors;
#pragma unroll
  for (int c = 0; c < ratios; c++) errors.of[c] = sums[c * threads * n + place];
  return errors;
}

// ---- rows

template <class T>
__device__ __forceinline__ void errors_of_rows(const Call& call, const ClipEntry& t, int32_t index,
                                               double* sums) {
  const SumOrder& order = t.order;
  const Rule rule(call.head->quantizer);
  const RowSegment segment(order, t.group, index);
  double own[ratios][n] = {};
  if (segment.exists(order)) {
    Grid grid[ratios];
#pragma unroll
    for (int c = 0; c < ratios; c++)
      grid[c] = grid_of(call.head->quantizer, t, segment.channel, call.first + c);
    segment.each(order, [&](const Places& places) {
      each_element<T>(t, places, [&](int j, float x) {
#pragma unroll
        for (int c = 0; c < ratios; c++) add_error(own[c][j], rule, grid[c], x);
      });
    });
  }
  share(sums, own);
  add_up_rows<ratios>(
      order, t.group, index,
      [&](int of_block, int lane) { return shared_errors(sums, of_block * lanes + lane); },
      [&](const ClipErrors& total, int64_t chunk) { call.partials[t.partials + chunk] = total; });
}

__global__ void __launch_bounds__(threads, 2) clip_rows_kernel(Call call) {
  ESP_SHARED(double, sums, [ratios * threads * n]);
  const Part part = call.parts[blockIdx.x];
  const ClipEntry t = call.tensors[part.tensor];
  esp::with_dtype(t.dtype,
                  [&](auto element) { errors_of_rows<decltype(element)>(call, t, part.index, sums); });
}

// ---- columns of a matrix

template <class T>
__device__ __forceinline__ void errors_of_columns(const Call& call, const ClipEntry& t, int32_t index,
                                                  double* sums) {
  const SumOrder& order = t.order;
  const Rule rule(call.head->quantizer);
  const ColumnSegment segment(order, index);
  double own[ratios][n] = {};
  // Two ratios at a time: the grids of more would not fit into registers.
#pragma unroll
  for (int pair = 0; pair < ratios; pair += 2) {
    Grid grid[2][n];
#pragma unroll
    for (int j = 0; j < n; j++) grid[0][j] = grid[1][j] = {1, 1, 0};
    segment.each_channel(order, [&](int j, int64_t channel) {
#pragma unroll
      for (int c = 0; c < 2; c++)
        grid[c][j] = grid_of(call.head->quantizer, t, channel, call.first + pair + c);
    });
    segment.each(order, [&](const Places& places) {
      each_element<T>(t, places, [&](int j, float x) {
#pragma unroll
        for (int c = 0; c < 2; c++) add_error(own[pair + c][j], rule, grid[c][j], x);
      });
    });
  }
  share(sums, own);
  segment.add_up<ratios>(
      order, [&](int warp, int column) { return shared_errors(sums, warp * strip + column); },
      [&](const ClipErrors& total, int64_t partial) { call.partials[t.partials + partial] = total; });
}

__global__ void __launch_bounds__(threads, 2) clip_columns_kernel(Call call) {
  ESP_SHARED(double, sums, [ratios * threads * n]);
  const Part part = call.parts[blockIdx.x];
  const ClipEntry t = call.tensors[part.tensor];
  esp::with_dtype(t.dtype,
                  [&](auto element) { errors_of_columns<decltype(element)>(call, t, part.index, sums); });
}

// ---- the best of each channel

__global__ void __launch_bounds__(threads, 2) clip_best_kernel(Call call) {
  const Part part = call.parts[blockIdx.x];
  const ClipEntry& t = call.tensors[part.tensor];
  const esp_quantizer& q = call.head->quantizer;
  const SumOrder& order = t.order;
  const int64_t channel = static_cast<int64_t>(part.index) * warps + esp::warp_index();
  if (channel >= order.channels) return;  // a whole warp
  const ClipErrors* const partials = call.partials + t.partials;
  ClipBest best = {infinity, 1.0f, 0};
  if (call.first > 0 && esp::lane_index() == 0) best = call.best[t.channel + channel];  // lane 0 decides
  for (int c = 0; c < ratios && call.first + c <= q.clip_steps; c++) {
    const double error =
        channel_sums<1>(order, channel, [&](int64_t i) { return Sums<1>{{partials[i].of[c]}}; }).of[0];
    const Candidate candidate = candidate_of(q, t, channel, call.first + c);
    if (error < best.error && esp::usable_scale(candidate.scale))
      best = {error, candidate.scale, candidate.zero_point};
  }
  if (esp::lane_index() != 0) return;
  call.best[t.channel + channel] = best;
  if (call.first + ratios <= q.clip_steps) return;
  const Candidate whole = candidate_of(q, t, channel, 0);
  t.scale[channel] = esp::usable_scale(whole.scale) ? best.scale : whole.scale;
  if (t.zero_point != nullptr) t.zero_point[channel] = best.zero_point;
}

}  // namespace

esp_status esp_cuda_fake_quantize_clip(const esp_cuda_plan* plan, const void* table, void* workspace,
                                       void* stream) {
  if (plan == nullptr || table == nullptr || (workspace == nullptr && plan->workspace_bytes > 0))
    return esp::fail(ESP_INVALID_ARGUMENT, "fake_quantize_clip: plan, table or workspace is NULL");
  const int64_t* const parts = plan->operation;
  const int64_t count = parts[esp::sum_tensors], rows = parts[esp::sum_rows],
                columns = parts[esp::sum_columns], channels = parts[esp::sum_channels];
  Call call;
  call.head = static_cast<const QuantizeHead*>(table);
  call.tensors = reinterpret_cast<const ClipEntry*>(call.head + 1);
  call.best = static_cast<ClipBest*>(workspace);
  call.partials = reinterpret_cast<ClipErrors*>(call.best + parts[esp::clip_all_channels]);
  const auto* const first = reinterpret_cast<const Part*>(call.tensors + count);
  const struct {
    const char* name;
    void (*kernel)(Call);
    int64_t parts;
  } kernels[] = {
      {"fake_quantize errors of rows", clip_rows_kernel, rows},
      {"fake_quantize errors of columns", clip_columns_kernel, columns},
      {"fake_quantize best clip", clip_best_kernel, channels},
  };
  for (call.first = 0; call.first <= parts[esp::clip_steps]; call.first += ratios) {
    call.parts = first;
    for (const auto& k : kernels) {
      if (k.parts > 0) {
        if (esp_status status = esp::launch(k.name, k.kernel, k.parts, threads, stream, call)) return status;
      }
      call.parts += k.parts;
    }
  }
  return ESP_OK;
}
