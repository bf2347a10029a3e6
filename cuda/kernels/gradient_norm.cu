// gradient_norm: sqrt of the sum of (mask * gate * g)^2 over a list of tensors, and how many of them are not
// finite.
//
// Layout: n elements of F32, BF16 or F16 a tensor, bits beside them. A chunk is a block of 8192 elements.
// Numerics: the CPU's order in every addition (gradient_norm_order.h), in double, which is the definition:
// consumer GPUs run double at 1/32 to 1/64 of their rate and stay compute-bound here. Idea: a chunk has 16
// sums that each run over 512 elements, so half a warp has a chunk, one sum a lane. It stages 1 KiB of the
// chunk at a time in shared memory with 16-byte loads, 64 bytes a lane in flight while the KiB before is read
// back, one element a lane. Bytes: n times the element size, n/8 a bit field; 8 written and read again a chunk. The
// last block adds the chunks' sums, 256 lanes then a tree, and writes the result.
#include "gradient_norm.h"

#include "kernel.cuh"
#include "status.h"

namespace {

using esp::GradientChunk;
using esp::GradientNormState;
using esp::GuardRule;
using esp::Pack;

constexpr int threads = 256, team = 16, tile_bytes = 1024;
constexpr int loads = tile_bytes / (team * 16);  // of 16 bytes a lane
static_assert(threads / team == esp::gradient_norm_chunks_a_block, "the launcher counts on it");
static_assert(threads == esp::gradient_norm_lanes, "the last block has a thread a lane");

struct Tile {
  Pack<uint32_t, 4> elements[tile_bytes / 16];
  uint32_t bits[16];  // up to 512 elements
};

// The elements of one chunk as an update would see them, `n` of them from `start` on.
template <class T>
__device__ __forceinline__ double sum_of_squares(const esp_gradient& tensor, int64_t start, int lane,
                                                 unsigned lanes, Tile& tile) {
  constexpr int per_load = 16 / sizeof(T), per_tile = tile_bytes / sizeof(T);
  const T* const gradient[1] = {static_cast<const T*>(tensor.gradient)};
  const uint8_t* const mask = tensor.mask;
  const uint8_t* const gate = tensor.gate;
  ESP_GLOBAL(gradient[0]);
  const bool hides = mask != nullptr || gate != nullptr;
  const int64_t end =
      start + esp::gradient_norm_block < tensor.n ? start + esp::gradient_norm_block : tensor.n;
  double sum = 0;
  esp::RawPack<per_load, T> loaded[1][loads];
  uint32_t of_mask = 0, of_gate = 0;
  const auto load = [&](int64_t i) {
    int64_t at[loads];
    int left[loads];
#pragma unroll
    for (int k = 0; k < loads; k++) {
      at[k] = i + (k * team + lane) * per_load;
      left[k] = static_cast<int>(end - at[k]);
    }
    esp::load_places<per_load>(gradient, at, left, loaded);
    if (hides && lane * 32 < per_tile) {
      of_mask = esp::bits_32(mask, i + lane * 32, end);
      of_gate = esp::bits_32(gate, i + lane * 32, end);
    }
  };
  load(start);
#pragma unroll 1
  for (int64_t i = start; i < end; i += per_tile) {
    __syncwarp(lanes);  // the tile before has been read
#pragma unroll
    for (int k = 0; k < loads; k++) tile.elements[k * team + lane] = loaded[0][k];
    tile.bits[lane] = of_mask & of_gate;
    __syncwarp(lanes);
    if (i + per_tile < end) load(i + per_tile);  // on its way while this one is added up
    const T* const staged = reinterpret_cast<const T*>(tile.elements);
#pragma unroll 4
    for (int j = 0; j < per_tile / team; j++) {
      float x = esp::to_float(staged[j * team + lane]);
      if (hides && (tile.bits[j / 2] >> (j % 2 * 16 + lane) & 1) == 0) x = 0;
      sum = fma(static_cast<double>(x), static_cast<double>(x), sum);
    }
  }
  return sum;
}

template <class T>
__device__ int count_non_finite(const esp_gradient& tensor, int64_t start, int lane) {
  const T* const gradient = static_cast<const T*>(tensor.gradient);
  const int64_t end =
      start + esp::gradient_norm_block < tensor.n ? start + esp::gradient_norm_block : tensor.n;
  int found = 0;
  for (int64_t i = start + lane; i < end; i += team) {
    const uint32_t visible =
        esp::bits_32(tensor.mask, i & ~int64_t{7}, end) & esp::bits_32(tensor.gate, i & ~int64_t{7}, end);
    const uint32_t magnitude = __float_as_uint(esp::to_float(gradient[i])) & 0x7fffffff;
    found += (visible >> (i & 7) & 1) != 0 && magnitude >= 0x7f800000 ? 1 : 0;
  }
  return found;
}

__global__ void __launch_bounds__(threads, 3)
    gradient_norm_kernel(const esp_gradient* __restrict__ tensors, const GradientChunk* __restrict__ chunks,
                         int count, GradientNormState* state, esp_gradient_norm_result* result,
                         GuardRule rule) {
  ESP_SHARED(Tile, tiles, [threads / team]);
  ESP_SHARED(double, sums, [threads]);
  if (rule.guard != nullptr) esp::let_next_begin();
  double* const squares = reinterpret_cast<double*>(state + 1);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % team;
  const unsigned lanes = 0xffffu << (thread % 32 / team * team);
  const int index = static_cast<int>(blockIdx.x) * esp::gradient_norm_chunks_a_block + thread / team;
  if (index < count) {
    const GradientChunk chunk = chunks[index];
    const esp_gradient& tensor = tensors[chunk.tensor];
    const int64_t start = static_cast<int64_t>(chunk.block) * esp::gradient_norm_block;
    Tile& tile = tiles[thread / team];
    double sum = esp::with_dtype(tensor.dtype, [&](auto element) {
      return sum_of_squares<decltype(element)>(tensor, start, lane, lanes, tile);
    });
#pragma unroll
    for (int half = team / 2; half > 0; half /= 2) sum += __shfl_down_sync(lanes, sum, half, team);
    sum = __shfl_sync(lanes, sum, 0, team);
    if (lane == 0) squares[index] = sum;
    if (!(sum <= 1.7976931348623157e308)) {  // squares of floats stay finite: an element is not
      const int found = esp::with_dtype(tensor.dtype, [&](auto element) {
        return count_non_finite<decltype(element)>(tensor, start, lane);
      });
      if (found > 0) atomicAdd(&state->non_finite, static_cast<unsigned long long>(found));
    }
  }
  if (!esp::is_last_block(&state->arrived, gridDim.x)) return;

  double sum = 0;
#pragma unroll 4
  for (int i = thread; i < count; i += threads) sum += squares[i];
  sums[thread] = sum;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) {
    const double norm = sqrt(sums[0]);
    const unsigned long long non_finite = state->non_finite;
    state->non_finite = 0;
    if (rule.guard == nullptr) {
      *result = {norm, static_cast<int64_t>(non_finite)};
      return;
    }
    double factor = 1;
    int32_t skipped = 0;
    if (non_finite > 0) {
      skipped = rule.skip_non_finite != 0 ? 1 : esp::step_refused;
    } else if (rule.max_norm > 0) {
      factor = rule.max_norm / (norm + 1e-6);
      if (!(factor < 1)) factor = 1;
    }
    *rule.guard = {norm, factor, non_finite, static_cast<float>(factor), skipped};
  }
}

}  // namespace

esp_status esp::launch_gradient_norm(const esp_cuda_plan& plan, const void* table, void* workspace,
                                     esp_gradient_norm_result* result, const GuardRule& rule, void* stream) {
  const int64_t count = plan.operation[gradient_norm_tensors], chunks = plan.operation[gradient_norm_chunks];
  const auto* tensors = static_cast<const esp_gradient*>(table);
  const int64_t blocks = (chunks + gradient_norm_chunks_a_block - 1) / gradient_norm_chunks_a_block;
  // An empty list has a norm too.
  return launch("gradient_norm", gradient_norm_kernel, blocks > 0 ? blocks : 1, threads, stream, tensors,
                reinterpret_cast<const GradientChunk*>(tensors + count), static_cast<int>(chunks),
                static_cast<GradientNormState*>(workspace), result, rule);
}

esp_status esp_cuda_gradient_norm(const esp_cuda_plan* plan, const void* table, void* workspace,
                                  esp_gradient_norm_result* result, void* stream) {
  if (plan == nullptr || workspace == nullptr || result == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "gradient_norm: plan, workspace or result is NULL");
  }
  return esp::launch_gradient_norm(*plan, table, workspace, result, {}, stream);
}
