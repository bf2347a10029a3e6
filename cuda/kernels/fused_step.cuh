// What the kernels of fused optimizer steps do alike: pieces, norm and skipping, absmax, scales, working copy
// and gate. A Rule is the update of an element. It has
// - Coefficients: of a step, F32, with `factor`, the clip factor, negative where maximize, and `noise`.
// - History: what a tensor keeps on the device from step to step; older(h): the same after a step.
// - Correction: what a kernel of the rule's own computes for a tensor before the update; corrects: whether
//   there is one.
// - states: how many floats of state an element has beside its weight (momentum, moments).
// - Age, age(coefficients, history, corrections, tensor): what the update of a tensor needs of these;
//   reads(age), writes(age): whether the state is read, written.
// - move(c, age, keep, descent, w, state): updates 4 weights and their state, where kept(keep, j, x) makes
//   those that the mask prunes 0; descent(j) is mask * gate * gradient * factor.
// - blocks: resident blocks of a multiprocessor, which leaves 65536 / (256 * blocks) registers a thread.
// - group: packs that are loaded before the first of them is stored: of each stream blocks * group * 4 KiB
//   are in flight at once. An H200 wants 40 KB a multiprocessor over all streams.
//
// Layout: rows x cols, row-major, bits beside them. A block has a piece of one tensor: 6144 elements or
// fewer, 6 packs of 4 a thread, or a panel of 256 columns by 48 rows. Absmax is an integer maximum over the
// bits of |w|, which infinity and NaN win and whose order does not matter. Idea: the updated weights of a
// piece stay in shared memory, so that rows which lie whole in a piece get scale, working copy and gate in
// the same pass. Channels that span pieces raise a slot by an atomic maximum, and a second kernel quantizes.
#pragma once
#include "device_limits.h"
#include "fused_step_quantize.cuh"
#include "fused_step_table.h"
#include "fused_step_update.cuh"
#include "kernel.cuh"
#include "status.h"

namespace {

// The last block of the last kernel: what the step has come to.
template <class Rule>
__device__ __forceinline__ void finish(StepState* state, bool guarded, bool with_history, int64_t count,
                                       typename Rule::History* history, esp_step_result* result) {
  const bool skipped = guarded && state->guard.skipped != 0;
  if (with_history && !skipped) {
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < count; i += threads) history[i] = Rule::older(history[i]);
  }
  if (threadIdx.x != 0) return;
  // The doubles are copied as words: nothing here computes with them.
  auto* const words = reinterpret_cast<unsigned long long*>(result);
  const auto* const guard = reinterpret_cast<const unsigned long long*>(&state->guard);
  words[0] = guarded ? guard[0] : 0x7ff8000000000000ull;
  words[1] = guarded ? guard[1] : 0x3ff0000000000000ull;
  result->non_finite = guarded ? static_cast<int64_t>(state->guard.non_finite) : 0;
  result->non_finite_channels = static_cast<int64_t>(state->non_finite_channels);
  result->skipped = guarded ? state->guard.skipped : 0;
  state->non_finite_channels = 0;
}

template <class Rule>
struct Step {
  const StepEntry* tensors;
  const StepChunk* chunks;
  StepState* state;
  int* slots;
  typename Rule::History* history;
  const typename Rule::Correction* corrections;  // one a tensor; nullptr where the rule has none
  esp_step_result* result;
  int64_t count;
  typename Rule::Coefficients coefficients;
  int32_t chunk_count;
  bool guarded, with_history, last;
};

template <class Rule, bool noisy>
__device__ __forceinline__ void update_panel(const Step<Rule>& step, const StepEntry& t, int32_t index,
                                             const typename Rule::Coefficients& c,
                                             const typename Rule::Age& age, Kept& kept) {
  int largest[4] = {};
#pragma unroll 1
  for (int turn = 0; turn < panel_turns; turn++) {
    update<Rule, noisy>(t, c, age, panel_place(t, index, turn), t.cols % 4 == 0, kept);
#pragma unroll
    for (int k = 0; k < packs; k++) {
#pragma unroll
      for (int j = 0; j < 4; j++) largest[j] = max(largest[j], magnitude_bits(kept.of(k).at[j]));
    }
  }
  const int64_t column = panel_column(t, index);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (column + j < t.cols) atomicMax(&step.slots[t.slot + column + j], largest[j]);
  }
}

// The tensor of a block: read from shared memory where it is needed, behind a barrier, it takes no registers.
__device__ __forceinline__ void load_entry(const StepEntry* from, StepEntry* to) {
  constexpr int words = sizeof(StepEntry) / 4;
  if (threadIdx.x < words)
    reinterpret_cast<uint32_t*>(to)[threadIdx.x] = reinterpret_cast<const uint32_t*>(from)[threadIdx.x];
}

template <class Rule, bool noisy>
__device__ void update_piece(const Step<Rule>& step, const StepChunk& chunk, typename Rule::Coefficients c,
                             const typename Rule::Age& age, const StepEntry& t, Scales& scales, Kept& kept) {
  if (step.guarded) {
    const float factor = step.state->guard.factor;
    c.factor = c.factor < 0 ? -factor : factor;
  }
  if (t.mode == esp::step_spread && t.columns != 0)
    return update_panel<Rule, noisy>(step, t, chunk.index, c, age, kept);
  const int64_t start = chunk.index * t.piece;
  const FlatPlace place = flat_place(t, start, t.piece);
  update<Rule, noisy>(t, c, age, place, true, kept);

  if (t.mode == esp::step_plain) {
#pragma unroll 1
    for (int k = 0; k < packs && t.copy_type != ESP_COPY_NONE; k++)
      store_copy(t, place.at(k), place.limit(k), true, kept.of(k).at);
    return;
  }
  const Rows rows(t, start);
  const int count = t.columns != 0 ? 0 : static_cast<int>(rows.row(place.limit(0) - 1 - start)) + 1;
  if (t.mode == esp::step_given && (t.columns != 0 || count > esp::step_piece_rows)) {
    __syncwarp();  // the old gate has been read
    quantize_each(t, place, start, rows, kept, nullptr, step.state);
    return;
  }
  if (t.mode == esp::step_given) {
    for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) {
      scales.scale[r] = t.scale[rows.first + r];
      scales.inverse[r] = 1.0f / scales.scale[r];
    }
    __syncthreads();
    quantize_rows(t, place, start, rows, scales, kept);
    return;
  }

  for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) scales.absmax[r] = 0;
  __syncthreads();
  raise_rows(place, start, rows, kept, scales.absmax);
  __syncthreads();
  if (t.mode == esp::step_spread) {
    for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) {
      atomicMax(&step.slots[t.slot + rows.first + r], scales.absmax[r]);
    }
    return;
  }
  for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) {
    const float scale = scale_of(scales.absmax[r]);
    scales.scale[r] = t.scale[rows.first + r] = scale;
    scales.inverse[r] = 1.0f / scale;
    count_broken(step.state, scale);
  }
  __syncthreads();
  quantize_rows(t, place, start, rows, scales, kept);
}

template <class Place>
__device__ __forceinline__ void load_weights(const StepEntry& t, const Place& place, bool quads, Kept& kept) {
  const float* const weight = t.weight;
  ESP_GLOBAL(weight);
  Pack<float, 4> loaded[packs];
#pragma unroll
  for (int k = 0; k < packs; k++)
    loaded[k] = esp::load_pack<4>(weight, place.at(k), place.limit(k), quads && esp::is_aligned(weight, 16));
#pragma unroll
  for (int k = 0; k < packs; k++) kept.of(k) = loaded[k];
}

template <class Rule>
__device__ __forceinline__ void quantize_panel(const Step<Rule>& step, const StepEntry& t, int32_t index,
                                               Kept& kept) {
  const int64_t column = panel_column(t, index);
  const bool quads = t.cols % 4 == 0, first = index < esp::step_panels(t.cols) && threadIdx.x < panel_packs;
  float scale[4], inverse[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    scale[j] = column + j < t.cols ? scale_of(step.slots[t.slot + column + j]) : 1.0f;
    inverse[j] = 1.0f / scale[j];
    if (first && column + j < t.cols) {
      t.scale[column + j] = scale[j];
      count_broken(step.state, scale[j]);
    }
  }
#pragma unroll 1
  for (int turn = 0; turn < panel_turns; turn++) {
    const PanelPlace place = panel_place(t, index, turn);
    load_weights(t, place, quads, kept);
#pragma unroll 1
    for (int k = 0; k < packs; k++) {
      const int64_t i = place.at(k), limit = place.limit(k);
      const uint32_t pass = i < limit ? quantize(t, i, limit, quads, kept.of(k), scale, inverse) : 0;
      store_gate(t.gate, i, limit, pass);
    }
  }
}

// The second pass over tensors whose channels span pieces.
template <class Rule>
__device__ void quantize_piece(const Step<Rule>& step, const StepChunk& chunk, const StepEntry& t,
                               Scales& scales, Kept& kept) {
  if (esp::step_quantizes_panels(t)) return quantize_panel(step, t, chunk.index, kept);
  const int* const slots = step.slots + t.slot;
  const int64_t start = static_cast<int64_t>(chunk.index) * esp::step_piece;
  const FlatPlace place = flat_place(t, start, esp::step_piece);
  load_weights(t, place, true, kept);
  const Rows rows(t, start);
  if (t.columns != 0) return quantize_each(t, place, start, rows, kept, slots, step.state);
  const int count = static_cast<int>(rows.row(place.limit(0) - 1 - start)) + 1;
  for (int r = static_cast<int>(threadIdx.x); r < count; r += threads) {
    const float scale = scale_of(slots[rows.first + r]);
    scales.scale[r] = scale;
    scales.inverse[r] = 1.0f / scale;
    if ((rows.first + r) * t.cols >= start) {  // the row begins here
      t.scale[rows.first + r] = scale;
      count_broken(step.state, scale);
    }
  }
  __syncthreads();
  quantize_rows(t, place, start, rows, scales, kept);
}

// Noise is a matter of arithmetic, which more registers help more than more threads.
template <class Rule, bool noisy>
__global__ void __launch_bounds__(threads, noisy ? 2 : Rule::blocks) update_kernel(Step<Rule> step) {
  ESP_SHARED(Scales, scales, [1]);
  ESP_SHARED(StepEntry, entry, [1]);
  ESP_SHARED(Kept, kept, [1]);
  ESP_SHARED(typename Rule::Age, age, [1]);
  const bool works = static_cast<int>(blockIdx.x) < step.chunk_count;
  const StepChunk chunk = works ? step.chunks[blockIdx.x] : StepChunk{};
  if (works) load_entry(step.tensors + chunk.tensor, entry);
  if (!step.last) esp::let_next_begin();
  esp::wait_for_kernel_before();
  const bool skipped = step.guarded && step.state->guard.skipped != 0;
  if (works && !skipped) {
    if (threadIdx.x == 0) age[0] = Rule::age(step.coefficients, step.history, step.corrections, chunk.tensor);
    __syncthreads();
    update_piece<Rule, noisy>(step, chunk, step.coefficients, age[0], entry[0], scales[0], kept[0]);
  }
  if (step.last && esp::is_last_block(&step.state->arrived, gridDim.x)) {
    finish<Rule>(step.state, step.guarded, step.with_history, step.count, step.history, step.result);
  }
}

template <class Rule>
__global__ void __launch_bounds__(threads, 3) quantize_kernel(Step<Rule> step) {
  ESP_SHARED(Scales, scales, [1]);
  ESP_SHARED(StepEntry, entry, [1]);
  ESP_SHARED(Kept, kept, [1]);
  const StepChunk chunk = step.chunks[blockIdx.x];
  load_entry(step.tensors + chunk.tensor, entry);
  esp::wait_for_kernel_before();
  const bool skipped = step.guarded && step.state->guard.skipped != 0;
  if (!skipped) {
    __syncthreads();
    quantize_piece(step, chunk, entry[0], scales[0], kept[0]);
  }
  if (esp::is_last_block(&step.state->arrived, gridDim.x)) {
    finish<Rule>(step.state, step.guarded, step.with_history, step.count, step.history, step.result);
  }
}

// What a call has when its arguments are checked.
struct StepCall {
  const char* update_name;
  const char* quantize_name;
  const esp_cuda_plan* plan;
  const void* table;
  void* workspace;
  double max_norm;
  int32_t skip_non_finite;
  esp_step_result* result;
  void* stream;
};

inline esp_status check_plan(const char* operation, const esp_cuda_plan& plan, bool guarded,
                             bool with_history) {
  const bool had_norm = plan.operation[esp::step_guarded] != 0,
             had = plan.operation[esp::step_with_history] != 0;
  if (guarded == had_norm && with_history == had) return ESP_OK;
  return esp::fail(ESP_INVALID_ARGUMENT, "%s: the plan was made for options with%s norm and with%s momentum",
                   operation, had_norm ? "" : "out", had ? "" : "out");
}

// A graph would add the same noise at each launch.
inline esp_status check_capture(const char* operation, const esp_step_noise& noise, void* stream) {
  if (noise.sigma == 0) return ESP_OK;
  cudaStreamCaptureStatus status;
  if (esp_status failed =
          esp::check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), operation)) {
    return failed;
  }
  return status == cudaStreamCaptureStatusNone
             ? ESP_OK
             : esp::fail(ESP_UNSUPPORTED,
                         "%s: a step with noise cannot be captured: each launch of the graph would add "
                         "the same noise",
                         operation);
}

// Queues the step. correct(kernels, corrections) queues what fills them.
template <class Rule, class Correct>
esp_status launch_step(const StepCall& call, const typename Rule::Coefficients& coefficients,
                       typename Rule::History* history, Correct&& correct) {
  const int64_t* const operation = call.plan->operation;
  const bool guarded = operation[esp::step_guarded] != 0;
  const int64_t count = operation[esp::step_tensors], first = operation[esp::step_first_chunks],
                second = operation[esp::step_second_chunks], slots = operation[esp::step_slots];
  const auto* const tensors = static_cast<const StepEntry*>(call.table);
  const auto* const chunks = reinterpret_cast<const StepChunk*>(tensors + count);
  auto* const state = static_cast<StepState*>(call.workspace);
  int* const slot = reinterpret_cast<int*>(state + 1);
  auto* const corrections = reinterpret_cast<typename Rule::Correction*>(slot + (slots + 1) / 2 * 2);
  void* const norm_workspace = corrections + (Rule::corrects ? count : 0);
  esp::DeviceLimits limits;
  if (esp_status status = esp::device_limits(&limits)) return status;

  if (slots > 0) {  // first, because kernels follow kernels only
    if (esp_status status = esp::check(
            cudaMemsetAsync(slot, 0, static_cast<size_t>(slots) * 4, static_cast<cudaStream_t>(call.stream)),
            call.update_name)) {
      return status;
    }
  }
  if (guarded) {
    const esp_cuda_plan norm = {0, 0, {count, operation[esp::step_norm_chunks]}};
    const esp::GuardRule rule = {call.max_norm, call.skip_non_finite, &state->guard};
    if (esp_status status = esp::launch_gradient_norm(norm, chunks + first + second, norm_workspace, nullptr,
                                                      rule, call.stream)) {
      return status;
    }
  }
  esp::Kernels kernels(limits, call.stream, guarded);
  if (esp_status status = correct(kernels, corrections, count)) return status;
  Step<Rule> step = {tensors,      chunks,
                     state,        slot,
                     history,      corrections,
                     call.result,  count,
                     coefficients, static_cast<int32_t>(first),
                     guarded,      operation[esp::step_with_history] != 0,
                     second == 0};
  const int64_t blocks = first > 0 ? first : 1;
  if (esp_status status = kernels.launch(
          call.update_name,
          coefficients.noise.sigma != 0 ? update_kernel<Rule, true> : update_kernel<Rule, false>, blocks,
          threads, step)) {
    return status;
  }
  if (second == 0) return ESP_OK;
  step.chunks = chunks + first;
  return kernels.launch(call.quantize_name, quantize_kernel<Rule>, second, threads, step);
}

}  // namespace
