// fake_quantize_scale_gradient: gradients of learned scales and zero points of a list of tensors, and the
// straight-through gradient of x. Formulas in espalier/fake_quantize.h.
//
// Layout: [outer, channels, inner], row-major. A thread has packs of 4 elements of x and grad_y at the same
// place. Numerics: F32 up to an element's part, sums in double in the order of fake_quantize_order.h. Idea:
// that order's segments are what the threads of a block add up side by side. In rows, 4 threads have a
// segment's 16 lanes in registers; in a matrix a lane has a pack of columns and a warp the 16 rows of a
// segment. A block adds its segments up in shared memory, so that memory sees one sum for 8192 elements of
// rows or 128 of a column. Channels of one chunk are done then; for the others a warp adds up its chunks.
// Bytes an element: x, grad_y and, where wanted, grad_x once.
#include "fake_quantize_scale_gradient.h"

#include "device_limits.h"
#include "fake_quantize_grid.cuh"
#include "kernel.cuh"
#include "status.h"

namespace {

using esp::bf16;
using esp::f16;
using esp::GradientEntry;
using esp::GradientHead;
using esp::GradientPart;
using esp::GradientState;
using esp::GradientSums;
using esp::Pack;
using esp::SumOrder;

constexpr int threads = esp::gradient_threads, warps = esp::gradient_warps, lanes = esp::sum_lanes;
constexpr int n = esp::gradient_pack, team = esp::gradient_team, strip = esp::gradient_strip, unrolled = 4;

// What every kernel is given.
struct Call {
  const GradientHead* head;
  const GradientEntry* tensors;
  const GradientPart* parts;
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

__device__ __forceinline__ void add(GradientSums& sums, const GradientSums& more) {
  sums.by_scale += more.by_scale;
  sums.by_zero_point += more.by_zero_point;
}
// What an element adds to the sums of its channel; whether its gradient passes.
__device__ __forceinline__ bool add_element(GradientSums& sums, const Rule& rule, const Grid& grid, float x,
                                            float grad_y) {
  const float v = rule.divide ? x / grid.scale : x * grid.by, rounded = rintf(v), position = rounded + grid.zero;
  const bool passes = position >= rule.qmin && position <= rule.qmax;
  const double g = static_cast<double>(grad_y);
  const float by_scale = passes ? rounded - v : clamped(position, rule) - grid.zero;
  sums.by_scale = fma(g, static_cast<double>(by_scale), sums.by_scale);
  sums.by_zero_point = fma(g, passes ? 0.0 : -static_cast<double>(grid.scale), sums.by_zero_point);
  return passes;
}
__device__ __forceinline__ void write_gradients(const GradientEntry& t, int64_t channel,
                                                const GradientSums& sums) {
  const double factor = static_cast<double>(t.factor);
  t.grad_scale[channel] = static_cast<float>(sums.by_scale * factor);
  if (t.grad_zero_point != nullptr)
    t.grad_zero_point[channel] = static_cast<float>(sums.by_zero_point * factor);
}

// Where packs of x and grad_y lie, and how many elements of each are in the tensor.
struct Places {
  int64_t at[unrolled];
  int left[unrolled];
};
// Adds the elements of the packs to sums[j], with grid_of(j), and writes grad_x: grad_y where the gradient passes.
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
  const int thread = static_cast<int>(threadIdx.x), of_chunk = thread / team % t.group;
  const int slots = esp::gradient_slots(t.group);
  const int64_t chunk = static_cast<int64_t>(index) * slots + thread / team / t.group,
                channel = chunk / order.chunks,
                segment = (chunk - channel * order.chunks) * esp::chunk_segments + of_chunk;
  GradientSums own[n];
#pragma unroll
  for (int j = 0; j < n; j++) own[j] = {0, 0};
  if (channel < order.channels && segment < order.segments) {
    const int member = thread % team * n;  // its first lane
    const esp::Window window = order.segment(channel, segment);
    const int columns = static_cast<int>(window.columns);
    const int turns = static_cast<int>(window.rows) * ((columns + lanes - 1) / lanes);
    const Grid grid = checked_grid(t, state, channel, rule);
    int64_t row = window.first;
    int column = 0;
    for (int turn = 0; turn < turns; turn += unrolled) {
      Places places;
#pragma unroll
      for (int k = 0; k < unrolled; k++) {
        places.at[k] = row + column + member;
        places.left[k] = turn + k < turns ? columns - column - member : 0;
        column += lanes;
        if (column >= columns) {
          column = 0;
          row += window.stride;
        }
      }
      add_packs<T>(t, places, rule, [&](int) { return grid; }, own);
    }
  }
#pragma unroll
  for (int j = 0; j < n; j++) sums[thread * n + j] = own[j];
  __syncthreads();
  // Half a warp a chunk.
  for (int first = esp::warp_index() * 2; first < slots; first += warps * 2) {
    const int slot = first + esp::lane_index() / lanes, lane = esp::lane_index() % lanes;
    GradientSums total = {0, 0};
    for (int s = 0; s < t.group; s++) add(total, sums[(slot * t.group + s) * lanes + lane]);
#pragma unroll
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
      add(total, {__shfl_down_sync(esp::all_lanes, total.by_scale, apart, lanes),
                  __shfl_down_sync(esp::all_lanes, total.by_zero_point, apart, lanes)});
    }
    const int64_t added = static_cast<int64_t>(index) * slots + slot;
    if (lane == 0 && added < order.channels * order.chunks) {
      if (order.chunks == 1) {
        write_gradients(t, added, total);
      } else {
        call.partials[t.partials + added] = total;
      }
    }
  }
}

__global__ void __launch_bounds__(threads, 2) scale_gradient_rows_kernel(Call call) {
  ESP_SHARED(GradientSums, sums, [threads * n]);
  wait_in_turn(call);
  const GradientPart part = call.parts[blockIdx.x];
  const GradientEntry t = call.tensors[part.tensor];
  GradientState* const state = call.states + part.tensor;
  switch (t.dtype) {
    case ESP_BF16:
      gradients_of_rows<bf16>(call, t, state, part.index, sums);
      break;
    case ESP_F16:
      gradients_of_rows<f16>(call, t, state, part.index, sums);
      break;
    default:
      gradients_of_rows<float>(call, t, state, part.index, sums);
  }
  finish(call);
}

// ---- columns of a matrix

template <class T>
__device__ __forceinline__ void gradients_of_columns(const Call& call, const GradientEntry& t,
                                                     GradientState* state, int32_t index,
                                                     GradientSums* sums) {
  const SumOrder& order = t.order;
  const int64_t width = order.matrix.width, strips = (width + strip - 1) / strip, chunk = index / strips,
                begin = (index - chunk * strips) * strip;
  const Rule rule(call.head->quantizer);
  const int thread = static_cast<int>(threadIdx.x), lane = esp::lane_index();
  const int64_t column = begin + lane * n,
                first = chunk * esp::chunk_rows + esp::warp_index() * esp::segment_rows;
  GradientSums own[n];
#pragma unroll
  for (int j = 0; j < n; j++) own[j] = {0, 0};
  if (column < width && first < order.height()) {
    Grid grid[n];
    const int64_t within = column % (order.channels * order.inner);
    int64_t channel = within / order.inner, of_channel = within - channel * order.inner;
#pragma unroll
    for (int j = 0; j < n; j++) {
      grid[j] = {1, 1, 0};
      if (column + j < width) grid[j] = checked_grid(t, state, channel, rule);
      if (++of_channel == order.inner) {
        of_channel = 0;
        channel = channel + 1 == order.channels ? 0 : channel + 1;
      }
    }
    for (int64_t from = first; from < first + esp::segment_rows; from += unrolled) {
      Places places;
#pragma unroll
      for (int k = 0; k < unrolled; k++) {
        const int64_t row = from + k, end = row < order.matrix.rows    ? width
                                            : row == order.matrix.rows ? order.matrix.rest
                                                                       : 0;
        places.at[k] = row * width + column;
        places.left[k] = column + n <= end ? n : column < end ? static_cast<int>(end - column) : 0;
      }
      add_packs<T>(t, places, rule, [&](int j) { return grid[j]; }, own);
    }
  }
#pragma unroll
  for (int j = 0; j < n; j++) sums[thread * n + j] = own[j];
  __syncthreads();
  if (thread < strip && begin + thread < width) {
    GradientSums total = {0, 0};
#pragma unroll
    for (int s = 0; s < warps; s++) add(total, sums[s * strip + thread]);
    call.partials[t.partials + chunk * width + begin + thread] = total;
  }
}

__global__ void __launch_bounds__(threads, 2) scale_gradient_columns_kernel(Call call) {
  ESP_SHARED(GradientSums, sums, [threads * n]);
  wait_in_turn(call);
  const GradientPart part = call.parts[blockIdx.x];
  const GradientEntry t = call.tensors[part.tensor];
  GradientState* const state = call.states + part.tensor;
  switch (t.dtype) {
    case ESP_BF16:
      gradients_of_columns<bf16>(call, t, state, part.index, sums);
      break;
    case ESP_F16:
      gradients_of_columns<f16>(call, t, state, part.index, sums);
      break;
    default:
      gradients_of_columns<float>(call, t, state, part.index, sums);
  }
  finish(call);
}

// ---- channels of several chunks

// Launched without parts where no tensor has any work, for the results.
__global__ void __launch_bounds__(threads) scale_gradient_sums_kernel(Call call, int64_t parts) {
  esp::wait_for_kernel_before();
  if (blockIdx.x < parts) {
    constexpr int held = esp::partial_lanes / 32;
    const GradientPart part = call.parts[blockIdx.x];
    const GradientEntry& t = call.tensors[part.tensor];
    const SumOrder& order = t.order;
    const int64_t channel = static_cast<int64_t>(part.index) * warps + esp::warp_index();
    if (channel < order.channels) {  // the same for a whole warp
      const int64_t count = order.partials_of_channel();
      const GradientSums* const partials = call.partials + t.partials;
      GradientSums own[held];
#pragma unroll
      for (int k = 0; k < held; k++) own[k] = {0, 0};
      for (int64_t from = esp::lane_index(); from < count; from += esp::partial_lanes) {
#pragma unroll
        for (int k = 0; k < held; k++) {
          if (from + k * 32 < count) add(own[k], partials[order.partial(channel, from + k * 32)]);
        }
      }
#pragma unroll
      for (int half = held / 2; half > 0; half /= 2) {
#pragma unroll
        for (int k = 0; k < half; k++) add(own[k], own[k + half]);
      }
#pragma unroll
      for (int apart = 16; apart > 0; apart /= 2) {
        add(own[0], {__shfl_down_sync(esp::all_lanes, own[0].by_scale, apart),
                     __shfl_down_sync(esp::all_lanes, own[0].by_zero_point, apart)});
      }
      if (esp::lane_index() == 0) write_gradients(t, channel, own[0]);
    }
  }
  finish(call);
}

}  // namespace

esp_status esp_cuda_fake_quantize_scale_gradient(const esp_cuda_plan* plan, const void* table,
                                                 void* workspace, esp_cuda_scale_gradient_result* results,
                                                 void* stream) {
  if (plan == nullptr || table == nullptr || workspace == nullptr ||
      (results == nullptr && plan->operation[esp::gradient_tensors] > 0)) {
    return esp::fail(ESP_INVALID_ARGUMENT,
                     "fake_quantize_scale_gradient: plan, table, workspace or results is NULL");
  }
  const int64_t* const parts = plan->operation;
  const int64_t count = parts[esp::gradient_tensors], rows = parts[esp::gradient_rows],
                columns = parts[esp::gradient_columns], sums = parts[esp::gradient_sums];
  const int64_t last = rows + columns + sums > 0 ? sums : 1;
  Call call;
  call.head = static_cast<const GradientHead*>(table);
  call.tensors = reinterpret_cast<const GradientEntry*>(call.head + 1);
  call.parts = reinterpret_cast<const GradientPart*>(call.tensors + count);
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
    if (esp_status status =
            kernels.launch("scale gradients of columns", scale_gradient_columns_kernel, columns, threads, call))
      return status;
  }
  call.parts += columns;
  if (last == 0) return ESP_OK;
  return kernels.launch("scale gradients", scale_gradient_sums_kernel, last, threads, call, sums);
}
