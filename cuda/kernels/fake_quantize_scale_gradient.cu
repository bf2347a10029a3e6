// fake_quantize_scale_gradient: gradients of learned scales and zero points of a list of tensors, and the
// straight-through gradient of x. Formulas in espalier/fake_quantize.h.
//
// Layout: [outer, channels, inner], row-major. A thread has packs of 4 elements of x and grad_y at the same
// place. Numerics: F32 up to an element's part, sums in double, see fake_quantize_sums.cuh. Channels of one
// chunk are done with that; for the others a second kernel adds up the chunks. Bytes an element: x, grad_y
// and, where wanted, grad_x once.
#include "fake_quantize_scale_gradient.h"

#include "device_limits.h"
#include "fake_quantize_grid.cuh"
#include "fake_quantize_sums.cuh"
#include "kernel.cuh"
#include "status.h"

namespace {

using esp::by_scale;
using esp::by_zero_point;
using esp::GradientEntry;
using esp::GradientState;
using esp::GradientSums;
using esp::Pack;
using esp::Part;
using esp::QuantizeHead;
using esp::SumOrder;

// What every kernel is given.
struct Call {
  const QuantizeHead* head;
  const GradientEntry* tensors;
  const Part* parts;
  esp::GradientCall* call;
  GradientState* states;
  GradientSums* partials;
  esp_cuda_scale_gradient_result* results;
  int64_t count;          // of tensors
  uint32_t writers;       // blocks of all kernels
  bool followed = false;  // by another kernel
};

// At the beginning of each kernel but the last.
__device__ __forceinline__ void wait_in_turn(const Call& call) {
  if (call.followed) esp::let_next_begin();
  esp::wait_for_kernel_before();
}

// The last block of all: results, and the workspace as it was.
__device__ void finish(const Call& call) {
  if (!esp::is_last_block(&call.call->arrived, call.writers)) return;
  for (int64_t t = threadIdx.x; t < call.count; t += threads) {
    const unsigned long long bad = call.states[t].bad;
    call.results[t] = {bad == 0 ? -1 : INT64_MAX - static_cast<int64_t>(bad)};
    call.states[t].bad = 0;
  }
}

__device__ __forceinline__ Grid checked_grid(const GradientEntry& t, GradientState* state, int64_t channel,
                                             const Rule& rule) {
  const Grid grid = grid_at(t.scale, t.zero_point, channel, rule.divide);
  if (!esp::usable_scale(grid.scale) || grid.zero < rule.qmin || grid.zero > rule.qmax)
    atomicMax(&state->bad, static_cast<unsigned long long>(INT64_MAX - channel));
  return grid;
}

// What an element adds to the sums of its channel; whether its gradient passes.
__device__ __forceinline__ bool add_element(GradientSums& sums, const Rule& rule, const Grid& grid, float x,
                                            float grad_y) {
  const float v = rule.divide ? x / grid.scale : x * grid.by, rounded = rintf(v),
              position = rounded + grid.zero;
  const bool passes = position >= rule.qmin && position <= rule.qmax;
  const double g = static_cast<double>(grad_y);
  const float slope = passes ? rounded - v : clamped(position, rule) - grid.zero;
  sums.of[by_scale] = fma(g, static_cast<double>(slope), sums.of[by_scale]);
  sums.of[by_zero_point] = fma(g, passes ? 0.0 : -static_cast<double>(grid.scale), sums.of[by_zero_point]);
  return passes;
}
__device__ __forceinline__ void write_gradients(const GradientEntry& t, int64_t channel,
                                                const GradientSums& sums) {
  const double factor = static_cast<double>(t.factor);
  t.grad_scale[channel] = static_cast<float>(sums.of[by_scale] * factor);
  if (t.grad_zero_point != nullptr)
    t.grad_zero_point[channel] = static_cast<float>(sums.of[by_zero_point] * factor);
}

// Adds the elements of the packs to sums[j], with grid_of(j), and writes grad_x: grad_y where the gradient
// passes.
template <class T, class GridOf>
__device__ __forceinline__ void add_packs(const GradientEntry& t, const Places& places, const Rule& rule,
                                          const GridOf& grid_of, GradientSums (&sums)[n]) {
  const T* const of[2] = {static_cast<const T*>(t.x), static_cast<const T*>(t.grad_y)};
  ESP_GLOBAL(of[0]);
  ESP_GLOBAL(of[1]);
  esp::RawPack<n, T> packs[2][unrolled];
  esp::load_places<n>(of, places.at, places.left, packs);
#pragma unroll
  for (int k = 0; k < unrolled; k++) {
    const auto x = esp::bits_as<Pack<T, n>>(packs[0][k]);
    auto grad_y = esp::bits_as<Pack<T, n>>(packs[1][k]);
#pragma unroll
    for (int j = 0; j < n; j++) {
      if (!add_element(sums[j], rule, grid_of(j), esp::to_float(x.at[j]), esp::to_float(grad_y.at[j])))
        grad_y.at[j] = T{};
    }
    if (t.grad_x == nullptr) continue;
    T* const grad_x = static_cast<T*>(t.grad_x) + places.at[k];
    ESP_GLOBAL(grad_x);
    esp::store_pack(grad_x, 0, places.left[k], esp::is_aligned(grad_x, n * sizeof(T)), grad_y);
  }
}

// ---- rows

template <class T>
__device__ __forceinline__ void gradients_of_rows(const Call& call, const GradientEntry& t,
                                                  GradientState* state, int32_t index, GradientSums* sums) {
  const SumOrder& order = t.order;
  const Rule rule(call.head->quantizer);
  const int thread = static_cast<int>(threadIdx.x);
  const RowSegment segment(order, t.group, index);
  GradientSums own[n];
#pragma unroll
  for (int j = 0; j < n; j++) own[j] = {};
  if (segment.exists(order)) {
    const Grid grid = checked_grid(t, state, segment.channel, rule);
    segment.each(order, [&](const Places& places) {
      add_packs<T>(
          t, places, rule, [&](int) { return grid; }, own);
    });
  }
#pragma unroll
  for (int j = 0; j < n; j++) sums[thread * n + j] = own[j];
  __syncthreads();
  add_up_rows<2>(
      order, t.group, index, [&](int of_block, int lane) { return sums[of_block * lanes + lane]; },
      [&](const GradientSums& total, int64_t chunk) {
        if (order.chunks == 1) {
          write_gradients(t, chunk, total);
        } else {
          call.partials[t.partials + chunk] = total;
        }
      });
}

__global__ void __launch_bounds__(threads, 2) scale_gradient_rows_kernel(Call call) {
  ESP_SHARED(GradientSums, sums, [threads * n]);
  wait_in_turn(call);
  const Part part = call.parts[blockIdx.x];
  const GradientEntry t = call.tensors[part.tensor];
  GradientState* const state = call.states + part.tensor;
  esp::with_dtype(
      t.dtype, [&](auto element) { gradients_of_rows<decltype(element)>(call, t, state, part.index, sums); });
  finish(call);
}

// ---- columns of a matrix

template <class T>
__device__ __forceinline__ void gradients_of_columns(const Call& call, const GradientEntry& t,
                                                     GradientState* state, int32_t index,
                                                     GradientSums* sums) {
  const SumOrder& order = t.order;
  const Rule rule(call.head->quantizer);
  const int thread = static_cast<int>(threadIdx.x);
  const ColumnSegment segment(order, index);
  GradientSums own[n];
#pragma unroll
  for (int j = 0; j < n; j++) own[j] = {};
  if (segment.exists(order)) {
    Grid grid[n];
#pragma unroll
    for (int j = 0; j < n; j++) grid[j] = {1, 1, 0};
    segment.each_channel(order,
                         [&](int j, int64_t channel) { grid[j] = checked_grid(t, state, channel, rule); });
    segment.each(order, [&](const Places& places) {
      add_packs<T>(
          t, places, rule, [&](int j) { return grid[j]; }, own);
    });
  }
#pragma unroll
  for (int j = 0; j < n; j++) sums[thread * n + j] = own[j];
  __syncthreads();
  segment.add_up<2>(
      order, [&](int warp, int column) { return sums[warp * strip + column]; },
      [&](const GradientSums& total, int64_t partial) { call.partials[t.partials + partial] = total; });
}

__global__ void __launch_bounds__(threads, 2) scale_gradient_columns_kernel(Call call) {
  ESP_SHARED(GradientSums, sums, [threads * n]);
  wait_in_turn(call);
  const Part part = call.parts[blockIdx.x];
  const GradientEntry t = call.tensors[part.tensor];
  GradientState* const state = call.states + part.tensor;
  esp::with_dtype(t.dtype, [&](auto element) {
    gradients_of_columns<decltype(element)>(call, t, state, part.index, sums);
  });
  finish(call);
}

// ---- channels of several chunks

// Launched without parts where no tensor has any work, for the results.
__global__ void __launch_bounds__(threads) scale_gradient_sums_kernel(Call call, int64_t parts) {
  esp::wait_for_kernel_before();
  if (blockIdx.x < parts) {
    const Part part = call.parts[blockIdx.x];
    const GradientEntry& t = call.tensors[part.tensor];
    const int64_t channel = static_cast<int64_t>(part.index) * warps + esp::warp_index();
    if (channel < t.order.channels) {  // the same for a whole warp
      const GradientSums* const partials = call.partials + t.partials;
      const GradientSums sums = channel_sums<2>(t.order, channel, [&](int64_t i) { return partials[i]; });
      if (esp::lane_index() == 0) write_gradients(t, channel, sums);
    }
  }
  finish(call);
}

}  // namespace

esp_status esp_cuda_fake_quantize_scale_gradient(const esp_cuda_plan* plan, const void* table,
                                                 void* workspace, esp_cuda_scale_gradient_result* results,
                                                 void* stream) {
  if (plan == nullptr || table == nullptr || workspace == nullptr ||
      (results == nullptr && plan->operation[esp::sum_tensors] > 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "fake_quantize_scale_gradient: plan, table, workspace or results is NULL");
  }
  const int64_t* const parts = plan->operation;
  const int64_t count = parts[esp::sum_tensors], rows = parts[esp::sum_rows],
                columns = parts[esp::sum_columns], sums = parts[esp::sum_channels];
  const int64_t last = rows + columns + sums > 0 ? sums : 1;
  Call call;
  call.head = static_cast<const QuantizeHead*>(table);
  call.tensors = reinterpret_cast<const GradientEntry*>(call.head + 1);
  call.parts = reinterpret_cast<const Part*>(call.tensors + count);
  call.call = static_cast<esp::GradientCall*>(workspace);
  call.states = reinterpret_cast<GradientState*>(call.call + 1);
  call.partials = reinterpret_cast<GradientSums*>(call.states + count);
  call.results = results;
  call.count = count;
  call.writers = static_cast<uint32_t>(rows + columns + last);
  esp::DeviceLimits limits;
  if (esp_status status = esp::device_limits(&limits)) return status;
  esp::Kernels kernels(limits, stream);
  if (rows > 0) {
    call.followed = columns + last > 0;
    if (esp_status status =
            kernels.launch("scale gradients of rows", scale_gradient_rows_kernel, rows, threads, call))
      return status;
  }
  call.parts += rows;
  if (columns > 0) {
    call.followed = last > 0;
    if (esp_status status = kernels.launch("scale gradients of columns", scale_gradient_columns_kernel,
                                           columns, threads, call))
      return status;
  }
  call.parts += columns;
  if (last == 0) return ESP_OK;
  return kernels.launch("scale gradients", scale_gradient_sums_kernel, last, threads, call, sums);
}
