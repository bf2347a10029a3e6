// fake_quantize_clip: of the parts 1 - i * (1 - smallest) / steps of each channel's range the one whose grid
// gives the smallest sum of (y - x)^2. Formulas in espalier/fake_quantize.h.
//
// Layout: [outer, channels, inner], row-major. A thread has packs of 4 elements. Numerics: F32 up to an
// element's error, sums in double in the order of fake_quantize_order.h, cut into segments and chunks as the
// gradients of scales are. Idea: four ratios are tried for each element that is read; a launch for each four
// adds up their errors chunk by chunk, another adds up the chunks and keeps the best. Bytes: x once for four
// ratios.
#include "fake_quantize_clip.h"

#include "fake_quantize_grid.cuh"
#include "kernel.cuh"
#include "status.h"

namespace {

using esp::bf16;
using esp::ClipBest;
using esp::ClipEntry;
using esp::ClipErrors;
using esp::ClipHead;
using esp::ClipPart;
using esp::f16;
using esp::Pack;
using esp::SumOrder;

constexpr int threads = esp::clip_threads, warps = esp::clip_warps, lanes = esp::sum_lanes;
constexpr int n = esp::clip_pack, team = esp::clip_team, strip = esp::clip_strip, unrolled = 4;
constexpr int ratios = esp::clip_ratios;
constexpr double infinity = __builtin_huge_val();

// What every kernel is given.
struct Call {
  const ClipHead* head;
  const ClipEntry* tensors;
  const ClipPart* parts;
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

template <class T>
__device__ __forceinline__ esp::RawPack<n, T> loaded(const ClipEntry& t, int64_t at, int left) {
  const T* const x = static_cast<const T*>(t.x) + at;
  ESP_GLOBAL(x);
  return esp::load_raw<n>(x, left);
}

// ---- rows

template <class T>
__device__ __forceinline__ void errors_of_rows(const Call& call, const ClipEntry& t, int32_t index,
                                               double* sums) {
  const SumOrder& order = t.order;
  const Rule rule(call.head->quantizer);
  const int thread = static_cast<int>(threadIdx.x), of_chunk = thread / team % t.group;
  const int slots = esp::clip_slots(t.group);
  const int64_t chunk = static_cast<int64_t>(index) * slots + thread / team / t.group,
                channel = chunk / order.chunks,
                segment = (chunk - channel * order.chunks) * esp::chunk_segments + of_chunk;
  double own[ratios][n];
#pragma unroll
  for (int c = 0; c < ratios; c++) {
#pragma unroll
    for (int j = 0; j < n; j++) own[c][j] = 0;
  }
  if (channel < order.channels && segment < order.segments) {
    const int member = thread % team * n;  // its first lane
    const esp::Window window = order.segment(channel, segment);
    const int columns = static_cast<int>(window.columns);
    const int turns = static_cast<int>(window.rows) * ((columns + lanes - 1) / lanes);
    Grid grid[ratios];
#pragma unroll
    for (int c = 0; c < ratios; c++) grid[c] = grid_of(call.head->quantizer, t, channel, call.first + c);
    int64_t row = window.first;
    int column = 0;
    for (int turn = 0; turn < turns; turn += unrolled) {
      esp::RawPack<n, T> pack[unrolled];
      int left[unrolled];
#pragma unroll
      for (int k = 0; k < unrolled; k++) {
        left[k] = turn + k < turns ? columns - column - member : 0;
        pack[k] = loaded<T>(t, row + column + member, left[k]);
        column += lanes;
        if (column >= columns) {
          column = 0;
          row += window.stride;
        }
      }
#pragma unroll
      for (int k = 0; k < unrolled; k++) {
        const auto x = esp::bits_as<Pack<T, n>>(pack[k]);
#pragma unroll
        for (int j = 0; j < n; j++) {
          if (j < left[k]) {
#pragma unroll
            for (int c = 0; c < ratios; c++)
              add_error(own[c][j], rule, grid[c], esp::to_float(x.at[j]));
          }
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < ratios; c++) {
#pragma unroll
    for (int j = 0; j < n; j++) sums[c * threads * n + thread * n + j] = own[c][j];
  }
  __syncthreads();
  // Half a warp a chunk.
  for (int first = esp::warp_index() * 2; first < slots; first += warps * 2) {
    const int slot = first + esp::lane_index() / lanes, lane = esp::lane_index() % lanes;
    ClipErrors total;
#pragma unroll
    for (int c = 0; c < ratios; c++) {
      double sum = 0;
      for (int s = 0; s < t.group; s++) sum += sums[c * threads * n + (slot * t.group + s) * lanes + lane];
#pragma unroll
      for (int apart = lanes / 2; apart > 0; apart /= 2)
        sum += __shfl_down_sync(esp::all_lanes, sum, apart, lanes);
      total.of[c] = sum;
    }
    const int64_t added = static_cast<int64_t>(index) * slots + slot;
    if (lane == 0 && added < order.channels * order.chunks) call.partials[t.partials + added] = total;
  }
}

__global__ void __launch_bounds__(threads, 2) clip_rows_kernel(Call call) {
  ESP_SHARED(double, sums, [ratios * threads * n]);
  const ClipPart part = call.parts[blockIdx.x];
  const ClipEntry t = call.tensors[part.tensor];
  switch (t.dtype) {
    case ESP_BF16:
      return errors_of_rows<bf16>(call, t, part.index, sums);
    case ESP_F16:
      return errors_of_rows<f16>(call, t, part.index, sums);
    default:
      return errors_of_rows<float>(call, t, part.index, sums);
  }
}

// ---- columns of a matrix

template <class T>
__device__ __forceinline__ void errors_of_columns(const Call& call, const ClipEntry& t, int32_t index,
                                                  double* sums) {
  const SumOrder& order = t.order;
  const int64_t width = order.matrix.width, strips = (width + strip - 1) / strip, chunk = index / strips,
                begin = (index - chunk * strips) * strip;
  const Rule rule(call.head->quantizer);
  const int thread = static_cast<int>(threadIdx.x), lane = esp::lane_index();
  const int64_t column = begin + lane * n,
                first = chunk * esp::chunk_rows + esp::warp_index() * esp::segment_rows;
  double own[ratios][n];
#pragma unroll
  for (int c = 0; c < ratios; c++) {
#pragma unroll
    for (int j = 0; j < n; j++) own[c][j] = 0;
  }
  const int64_t within = column % (order.channels * order.inner);
  // Two ratios at a time: the grids of more would not fit into registers.
#pragma unroll
  for (int pair = 0; pair < ratios; pair += 2) {
    const int64_t end_row = column < width && first < order.height() ? first + esp::segment_rows : first;
    Grid grid[2][n];
    int64_t channel = within / order.inner, of_channel = within - channel * order.inner;
#pragma unroll
    for (int j = 0; j < n; j++) {
#pragma unroll
      for (int c = 0; c < 2; c++) {
        grid[c][j] = {1, 1, 0};
        if (column + j < width) grid[c][j] = grid_of(call.head->quantizer, t, channel, call.first + pair + c);
      }
      if (++of_channel == order.inner) {
        of_channel = 0;
        channel = channel + 1 == order.channels ? 0 : channel + 1;
      }
    }
    for (int64_t from = first; from < end_row; from += unrolled) {
      esp::RawPack<n, T> pack[unrolled];
      int left[unrolled];
#pragma unroll
      for (int k = 0; k < unrolled; k++) {
        const int64_t row = from + k, end = row < order.matrix.rows    ? width
                                            : row == order.matrix.rows ? order.matrix.rest
                                                                       : 0;
        left[k] = column + n <= end ? n : column < end ? static_cast<int>(end - column) : 0;
        pack[k] = loaded<T>(t, row * width + column, left[k]);
      }
#pragma unroll
      for (int k = 0; k < unrolled; k++) {
        const auto x = esp::bits_as<Pack<T, n>>(pack[k]);
#pragma unroll
        for (int j = 0; j < n; j++) {
          if (j < left[k]) {
#pragma unroll
            for (int c = 0; c < 2; c++)
              add_error(own[pair + c][j], rule, grid[c][j], esp::to_float(x.at[j]));
          }
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < ratios; c++) {
#pragma unroll
    for (int j = 0; j < n; j++) sums[c * threads * n + thread * n + j] = own[c][j];
  }
  __syncthreads();
  if (thread < strip && begin + thread < width) {
    ClipErrors total;
#pragma unroll
    for (int c = 0; c < ratios; c++) {
      double sum = 0;
#pragma unroll
      for (int s = 0; s < warps; s++) sum += sums[c * threads * n + s * strip + thread];
      total.of[c] = sum;
    }
    call.partials[t.partials + chunk * width + begin + thread] = total;
  }
}

__global__ void __launch_bounds__(threads, 2) clip_columns_kernel(Call call) {
  ESP_SHARED(double, sums, [ratios * threads * n]);
  const ClipPart part = call.parts[blockIdx.x];
  const ClipEntry t = call.tensors[part.tensor];
  switch (t.dtype) {
    case ESP_BF16:
      return errors_of_columns<bf16>(call, t, part.index, sums);
    case ESP_F16:
      return errors_of_columns<f16>(call, t, part.index, sums);
    default:
      return errors_of_columns<float>(call, t, part.index, sums);
  }
}

// ---- the best of each channel

__global__ void __launch_bounds__(threads, 2) clip_best_kernel(Call call) {
  constexpr int held = esp::partial_lanes / 32;
  const ClipPart part = call.parts[blockIdx.x];
  const ClipEntry& t = call.tensors[part.tensor];
  const esp_quantizer& q = call.head->quantizer;
  const SumOrder& order = t.order;
  const int64_t channel = static_cast<int64_t>(part.index) * warps + esp::warp_index();
  if (channel >= order.channels) return;  // a whole warp
  const int64_t count = order.partials_of_channel();
  const ClipErrors* const partials = call.partials + t.partials;
  ClipBest best = {infinity, 1.0f, 0};
  if (call.first > 0 && esp::lane_index() == 0) best = call.best[t.channel + channel];  // lane 0 decides
  for (int c = 0; c < ratios && call.first + c <= q.clip_steps; c++) {
    double own[held];
#pragma unroll
    for (int k = 0; k < held; k++) own[k] = 0;
    for (int64_t from = esp::lane_index(); from < count; from += esp::partial_lanes) {
#pragma unroll
      for (int k = 0; k < held; k++) {
        if (from + k * 32 < count) own[k] += partials[order.partial(channel, from + k * 32)].of[c];
      }
    }
#pragma unroll
    for (int half = held / 2; half > 0; half /= 2) {
#pragma unroll
      for (int k = 0; k < half; k++) own[k] += own[k + half];
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) own[0] += __shfl_down_sync(esp::all_lanes, own[0], apart);
    const Candidate candidate = candidate_of(q, t, channel, call.first + c);
    if (own[0] < best.error && esp::usable_scale(candidate.scale))
      best = {own[0], candidate.scale, candidate.zero_point};
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
  const int64_t count = parts[esp::clip_tensors], rows = parts[esp::clip_rows],
                columns = parts[esp::clip_columns], channels = parts[esp::clip_channels];
  Call call;
  call.head = static_cast<const ClipHead*>(table);
  call.tensors = reinterpret_cast<const ClipEntry*>(call.head + 1);
  call.best = static_cast<ClipBest*>(workspace);
  call.partials = reinterpret_cast<ClipErrors*>(call.best + parts[esp::clip_all_channels]);
  const auto* const first = reinterpret_cast<const ClipPart*>(call.tensors + count);
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
