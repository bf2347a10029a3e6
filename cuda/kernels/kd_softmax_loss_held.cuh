// Rows of 16-bit logits of more than a segment, read from memory once: a cluster of blocks holds a row's
// student and teacher in shared memory between two passes, one for the sums and one for the gradient.
//
// Layout: a block has `share` columns, a thread a pack of 8 in each layer of 2048; only the thread that
// loaded a pack looks at it again, so that passes need no barrier. Numerics: 2^x in one instruction, on float
// arguments x * scale - M with M an integer; within the limits that espalier/cuda/kd_softmax_loss.h states.
// Sums of a thread in float, pack by pack, of a warp as a tree, double from there; their order depends on
// classes and device alone. Idea: the first pass takes for M what a thread's first pack says, instead of a
// pass for the maximum; a thread whose sum then leaves (0, 2^64] looks again with its own maximum. Rows whose
// maxima are infinite or beyond 2^22 are left to the way of the CPU. Beyond the end of a row logits are -inf.
// Bytes an element: 6 with a teacher. Issue slots an element, of 128 a clock: see ARCHITECTURE.md.
#pragma once
#include "kd_softmax_loss_row.cuh"

namespace {

using esp::KdHold;

constexpr int pack = esp::kd_pack, warps = threads / 32, layer_columns = threads * pack, batch = 4;
constexpr float least_power = -0x1p22f, most_power = 0x1p22f, most_sum = 0x1p64f;

// Two elements a word.
struct alignas(16) Words {
  uint32_t at[pack / 2];
};
template <class T>
constexpr uint32_t lowest_pair();  // -inf twice
template <>
constexpr uint32_t lowest_pair<bf16>() {
  return 0xff80ff80u;
}
template <>
constexpr uint32_t lowest_pair<f16>() {
  return 0xfc00fc00u;
}

template <class T>
__device__ __forceinline__ Words load_words(const T* p, int i, int n, bool whole) {
  if (whole && i + pack <= n) return *reinterpret_cast<const Words*>(p + i);
  Words words;
#pragma unroll
  for (int j = 0; j < pack / 2; j++) {
    uint32_t word = lowest_pair<T>();
    if (i + 2 * j < n) word = (word & 0xffff0000u) | p[i + 2 * j].bits;
    if (i + 2 * j + 1 < n) word = (word & 0xffffu) | static_cast<uint32_t>(p[i + 2 * j + 1].bits) << 16;
    words.at[j] = word;
  }
  return words;
}
template <class T>
__device__ __forceinline__ void store_words(T* p, int i, int n, bool whole, const Words& words) {
  if (whole && i + pack <= n) {
    *reinterpret_cast<Words*>(p + i) = words;
    return;
  }
#pragma unroll
  for (int j = 0; j < pack; j++) {
    if (i + j < n) p[i + j] = {static_cast<uint16_t>(words.at[j / 2] >> (j % 2 * 16))};
  }
}
template <class T>
__device__ __forceinline__ void floats_of(const Words& words, float (&values)[pack]) {
#pragma unroll
  for (int j = 0; j < pack; j += 2) esp::to_floats<T>(words.at[j / 2], values[j], values[j + 1]);
}
__device__ __forceinline__ float largest_of(const float (&x)[pack]) {
  return fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7])));
}
__device__ __forceinline__ float sum_of(const float (&x)[pack]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}
// M for logits up to `maximum`; the ends of its range mean that there is none. Any will do for a NaN.
__device__ __forceinline__ float power_for(float maximum, float scale) {
  return maximum != maximum ? 0.0f : rintf(fmaxf(fminf(maximum * scale, most_power), least_power));
}
// 2^n, n an integer <= 0.
__device__ __forceinline__ float scale_down(float n) {
  return n < -126 ? 0.0f : __uint_as_float(static_cast<uint32_t>(static_cast<int>(n) + 127) << 23);
}

// Of some columns: sums relative to 2^M of student, teacher and hard exponentials, of the teacher's times
// (t - s), and of max(0, s - b)^2.
struct HeldSums {
  float student_power, teacher_power, hard_power;
  float student, teacher, hard, difference, bound;
};

template <bool soft, bool bounded>
__device__ __forceinline__ void add_pack(const KdPowers& powers, const float (&s)[pack],
                                         const float (&t)[pack], HeldSums& sums) {
  float x[pack];
#pragma unroll
  for (int j = 0; j < pack; j++)
    x[j] = esp::exp2_approximate(fmaf(s[j], powers.soft.high, -sums.student_power));
  sums.student = sums.student + sum_of(x);
  // The temperature is asked for once a pack.
  if (powers.power == 2) {
    float hard = 0;
#pragma unroll
    for (int j = 0; j < pack; j++) hard = fmaf(x[j], x[j], hard);
    sums.hard = sums.hard + hard;
  } else if (powers.power > 2) {
    float hard = 0;
#pragma unroll
    for (int j = 0; j < pack; j++) {
      const float square = x[j] * x[j];
      hard = fmaf(square, square, hard);
    }
    sums.hard = sums.hard + hard;
  } else if (powers.power == 0) {
#pragma unroll
    for (int j = 0; j < pack; j++)
      x[j] = esp::exp2_approximate(fmaf(s[j], powers.hard.high, -sums.hard_power));
    sums.hard = sums.hard + sum_of(x);
  }
  if (soft) {
    float difference = 0;
#pragma unroll
    for (int j = 0; j < pack; j++) {
      x[j] = esp::exp2_approximate(fmaf(t[j], powers.soft.high, -sums.teacher_power));
      // What a probability of 0 is far from does not matter; it may be infinitely far.
      if (x[j] != 0) difference = fmaf(x[j], t[j] - s[j], difference);
    }
    sums.teacher = sums.teacher + sum_of(x);
    sums.difference = sums.difference + difference;
  }
  if (bounded) {
    float bound = 0;
#pragma unroll
    for (int j = 0; j < pack; j++) {
      const float excess = excess_of(s[j], t[j]);
      bound = fmaf(excess, excess, bound);
    }
    sums.bound = sums.bound + bound;
  }
}
__device__ __forceinline__ void begin(const KdPowers& powers, bool soft, float s_max, float t_max,
                                      HeldSums& sums) {
  sums = {};
  sums.student_power = power_for(s_max, powers.soft.high);
  sums.teacher_power = soft ? power_for(t_max, powers.soft.high) : 0.0f;
  sums.hard_power = powers.power == 0 ? power_for(s_max, powers.hard.high)
                                      : static_cast<float>(powers.power) * sums.student_power;
}
__device__ __forceinline__ bool in_range(float sum) {
  return sum > 0 && sum <= most_sum;
}

// A block's columns of a row: where they are, and which of them shared memory holds.
template <class T, bool soft>
struct Columns {
  const T *student, *teacher;
  Words* held;
  int n, layers, layers_held;
  bool whole;

  __device__ __forceinline__ int column_of(int layer) const {
    return layer * layer_columns + static_cast<int>(threadIdx.x) * pack;
  }
  __device__ __forceinline__ Words* place_of(int layer) const {
    return held + layer * (soft ? 2 * threads : threads) + threadIdx.x;
  }
  // What a thread loaded before.
  __device__ __forceinline__ void take(int layer, Words& s, Words& t) const {
    if (layer < layers_held) {
      s = place_of(layer)[0];
      if (soft) t = place_of(layer)[threads];
    } else {
      s = load_words(student, column_of(layer), n, whole);
      if (soft) t = load_words(teacher, column_of(layer), n, whole);
    }
  }
};

// The sums of a thread again, relative to its own maxima.
template <class T, bool soft, bool bounded>
__device__ __forceinline__ void add_again(const KdPowers& powers, const Columns<T, soft>& columns,
                                          HeldSums& sums) {
  float s_max = -infinity, t_max = -infinity, s[pack], t[pack];
  Words student, teacher = {};
  for (int layer = 0; layer < columns.layers; layer++) {
    columns.take(layer, student, teacher);
    floats_of<T>(student, s);
    floats_of<T>(teacher, t);
    s_max = fmaxf(largest_of(s), s_max);
    if (soft) t_max = fmaxf(largest_of(t), t_max);
  }
  begin(powers, soft, s_max, t_max, sums);
  for (int layer = 0; layer < columns.layers; layer++) {
    columns.take(layer, student, teacher);
    floats_of<T>(student, s);
    floats_of<T>(teacher, t);
    add_pack<soft, bounded>(powers, s, t, sums);
  }
}

__device__ __forceinline__ float warp_most(float x) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(esp::all_lanes, x, apart));
  return x;
}
template <class F>
__device__ __forceinline__ F warp_sum(F x) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) x = x + __shfl_xor_sync(esp::all_lanes, x, apart);
  return x;
}

// A warp's sums from its threads', in all of them.
__device__ __forceinline__ HeldSums gather(const HeldSums& own) {
  HeldSums all;
  all.student_power = warp_most(own.student_power);
  all.teacher_power = warp_most(own.teacher_power);
  all.hard_power = warp_most(own.hard_power);
  const float teacher = scale_down(own.teacher_power - all.teacher_power);
  all.student = warp_sum(own.student * scale_down(own.student_power - all.student_power));
  all.teacher = warp_sum(own.teacher * teacher);
  all.hard = warp_sum(own.hard * scale_down(own.hard_power - all.hard_power));
  all.difference = warp_sum(teacher == 0 ? 0.0f : own.difference * teacher);
  all.bound = warp_sum(own.bound);
  return all;
}

// What the second pass needs of a row.
struct HeldRow {
  float student_power, teacher_power, hard_power;
  bool far;
  KdCoefficients coefficients;
};

// A row's, from those of the warps of all its blocks; by one warp, to all its lanes.
__device__ __forceinline__ RowSums add_up_row(const KdCall& call, int64_t row, HeldSums (&of_warps)[warps],
                                              HeldRow* settled) {
  const KdPowers& powers = powers_of(call);
  const bool soft = call.arguments.teacher.data != nullptr;
  const int lane = esp::lane_index(), count = call.hold.blocks * warps;
  float student_power = least_power, teacher_power = least_power, hard_power = 4 * least_power;
  HeldSums own[2];
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const int i = k * 32 + lane;
    own[k] = {};
    own[k].student_power = own[k].teacher_power = least_power;
    own[k].hard_power = 4 * least_power;
    if (i < count)
      own[k] = call.hold.blocks == 1 ? of_warps[i] : *esp::cluster_shared(&of_warps[i % warps], i / warps);
    student_power = fmaxf(student_power, own[k].student_power);
    teacher_power = fmaxf(teacher_power, own[k].teacher_power);
    hard_power = fmaxf(hard_power, own[k].hard_power);
  }
  student_power = warp_most(student_power);
  teacher_power = warp_most(teacher_power);
  hard_power = warp_most(hard_power);
  RowSums g = {};
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const double student = power_of_two(static_cast<double>(own[k].student_power - student_power));
    const double teacher = power_of_two(static_cast<double>(own[k].teacher_power - teacher_power));
    g.student += static_cast<double>(own[k].student) * student;
    g.teacher += static_cast<double>(own[k].teacher) * teacher;
    g.hard +=
        static_cast<double>(own[k].hard) * power_of_two(static_cast<double>(own[k].hard_power - hard_power));
    if (teacher != 0) g.difference += static_cast<double>(own[k].difference) * teacher;
    g.bound += static_cast<double>(own[k].bound);
  }
  g.student = warp_sum(g.student);
  g.teacher = soft ? warp_sum(g.teacher) : 1.0;
  g.hard = powers.power == 1 ? g.student : warp_sum(g.hard);
  // M counts in units of the scale's first float; the whole of it makes a difference to logits of thousands.
  const double unit = powers.soft.scale / static_cast<double>(powers.soft.high),
               hard_unit =
                   powers.power == 0 ? powers.hard.scale / static_cast<double>(powers.hard.high) : unit;
  // From (t - s) to the exponents' difference.
  g.difference = soft ? warp_sum(g.difference) * powers.soft.scale -
                            static_cast<double>(teacher_power - student_power) * unit * g.teacher
                      : 0.0;
  g.bound = warp_sum(g.bound);
  settled->student_power = student_power;
  settled->teacher_power = teacher_power;
  settled->hard_power = hard_power;
  settled->far = !(fabsf(student_power) < most_power) || (soft && !(fabsf(teacher_power) < most_power)) ||
                 (powers.power == 0 && !(fabsf(hard_power) < most_power));
  g.hard_exponent = static_cast<double>(hard_power) * hard_unit + powers.hard.bias;
  g.student_lost = !is_finite(g.student) || !is_finite(g.hard);
  g.teacher_lost = !is_finite(g.teacher);
  g.column = label_of(call, row);
  return g;
}

template <class T, bool soft, bool bounded>
__global__ void __launch_bounds__(threads, 3) kd_softmax_loss_held_kernel(KdCall call) {
  ESP_DYNAMIC_SHARED(Words, held);
  ESP_SHARED(HeldSums, of_warps, [warps]);
  ESP_SHARED(HeldRow, settled, [1]);
  esp::let_next_begin();
  esp::wait_for_kernel_before();
  if (call.state->is_bad != 0) return;
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const KdHold& hold = call.hold;
  const int64_t row = blockIdx.x / static_cast<uint32_t>(hold.blocks);
  const int rank = static_cast<int>(blockIdx.x % static_cast<uint32_t>(hold.blocks));
  const int64_t first = rank * hold.share, left = a.classes - first;
  const int thread = static_cast<int>(threadIdx.x);
  Columns<T, soft> columns;
  columns.student = reinterpret_cast<const T*>(row_of(a.student, row)) + first;
  columns.teacher = soft ? reinterpret_cast<const T*>(row_of(a.teacher, row)) + first : columns.student;
  columns.held = held;
  columns.n = static_cast<int>(left < hold.share ? left : hold.share);
  columns.layers = hold.layers;
  columns.layers_held = hold.held;
  columns.whole = esp::is_aligned(columns.student, 16) && esp::is_aligned(columns.teacher, 16);
  ESP_GLOBAL(columns.student);
  ESP_GLOBAL(columns.teacher);
  T* const gradient = static_cast<T*>(a.gradient) + (row * a.gradient_stride + first);
  const bool gradient_whole = esp::is_aligned(gradient, 16);
  if (!looked_at(call, row)) {
    if (rank == 0 && thread == 0) clear_terms(call, row);
    for (int layer = 0; a.gradient != nullptr && layer < hold.layers; layer++)
      store_words(gradient, columns.column_of(layer), columns.n, gradient_whole, Words{});
    return;
  }

  const KdPowers& powers = powers_of(call);
  HeldSums sums = {};
  for (int from = 0; from < hold.layers; from += batch) {
    Words student[batch], teacher[batch];
#pragma unroll
    for (int k = 0; k < batch; k++) {
      student[k] = load_words(columns.student, columns.column_of(from + k), columns.n, columns.whole);
      if (soft)
        teacher[k] = load_words(columns.teacher, columns.column_of(from + k), columns.n, columns.whole);
    }
#pragma unroll
    for (int k = 0; k < batch; k++) {
      if (from + k >= hold.layers) break;
      if (from + k < hold.held) {
        columns.place_of(from + k)[0] = student[k];
        if (soft) columns.place_of(from + k)[threads] = teacher[k];
      }
      float s[pack], t[pack] = {};
      floats_of<T>(student[k], s);
      if (soft) floats_of<T>(teacher[k], t);
      if (from + k == 0) begin(powers, soft, largest_of(s), soft ? largest_of(t) : 0.0f, sums);
      add_pack<soft, bounded>(powers, s, t, sums);
    }
  }
  if (columns.column_of(0) < columns.n &&
      !(in_range(sums.student) && (powers.power == 1 || in_range(sums.hard)) &&
        (!soft || in_range(sums.teacher)))) {
    add_again<T, soft, bounded>(powers, columns, sums);
  }
  sums = gather(sums);
  if (esp::lane_index() == 0) of_warps[esp::warp_index()] = sums;
  if (hold.blocks == 1) {
    __syncthreads();
  } else {
    esp::cluster_barrier();
  }
  RowSums g;
  if (thread < 32) {
    HeldRow r;
    g = add_up_row(call, row, of_warps, &r);
    // Before the gradient may take its place.
    g.label_logit = g.column < 0 ? 0.0f : element(a.student, row, g.column);
    r.coefficients = coefficients_of(call, g);
    if (r.coefficients.lost) r.coefficients.student = quiet_nan();  // and so all
    if (thread == 0) settled[0] = r;
  }
  // Also: no block ends, and none writes a gradient, before the others have looked.
  if (hold.blocks == 1) {
    __syncthreads();
  } else {
    esp::cluster_barrier();
  }
  const HeldRow r = settled[0];
  if (rank == 0 && thread == 0) {
    if (r.far) {
      call.far[atomicAdd(&call.state->far_rows, 1u)] = row;
    } else {
      record_terms(call, row, g);
    }
  }
  if (a.gradient == nullptr || r.far) return;

  const KdCoefficients& c = r.coefficients;
  const int64_t label = c.column - first;
  for (int layer = 0; layer < hold.layers; layer++) {
    const int column = columns.column_of(layer);
    Words student, teacher = {}, words;
    columns.take(layer, student, teacher);
    float s[pack], t[pack] = {}, g_of[pack];
    floats_of<T>(student, s);
    if (soft) floats_of<T>(teacher, t);
    float x[pack];
#pragma unroll
    for (int j = 0; j < pack; j++) {
      x[j] = esp::exp2_approximate(fmaf(s[j], powers.soft.high, -r.student_power));
      g_of[j] = c.student * x[j];
      if (soft)
        g_of[j] = fmaf(-c.teacher, esp::exp2_approximate(fmaf(t[j], powers.soft.high, -r.teacher_power)), g_of[j]);
    }
    if (powers.power == 2) {
#pragma unroll
      for (int j = 0; j < pack; j++) g_of[j] = fmaf(c.hard, x[j] * x[j], g_of[j]);
    } else if (powers.power > 2) {
#pragma unroll
      for (int j = 0; j < pack; j++) g_of[j] = fmaf(c.hard, hard_power(4, x[j]), g_of[j]);
    } else if (powers.power == 0) {
#pragma unroll
      for (int j = 0; j < pack; j++)
        g_of[j] = fmaf(c.hard, esp::exp2_approximate(fmaf(s[j], powers.hard.high, -r.hard_power)), g_of[j]);
    }
    if (bounded) {
#pragma unroll
      for (int j = 0; j < pack; j++) g_of[j] = fmaf(c.bound, excess_of(s[j], t[j]), g_of[j]);
    }
    if (label >= column && label < column + pack && c.column >= 0) {
#pragma unroll
      for (int j = 0; j < pack; j++) {
        if (label == column + j) g_of[j] = g_of[j] - c.label;
      }
    }
#pragma unroll
    for (int j = 0; j < pack; j += 2) words.at[j / 2] = esp::from_floats<T>(g_of[j], g_of[j + 1]);
    store_words(gradient, column, columns.n, gradient_whole, words);
  }
}

template <class T>
esp_status launch_held_of(const KdCall& call, esp::Kernels& kernels) {
  const bool soft = call.arguments.teacher.data != nullptr, bounded = call.arguments.bound.data != nullptr;
  const esp::Shape shape = {call.arguments.rows * call.hold.blocks, threads, call.hold.shared_bytes,
                            call.hold.most_bytes, call.hold.blocks};
  return kernels.launch("kd_softmax_loss of held rows",
                        bounded ? kd_softmax_loss_held_kernel<T, true, true>
                        : soft  ? kd_softmax_loss_held_kernel<T, true, false>
                                : kd_softmax_loss_held_kernel<T, false, false>,
                        shape, call);
}
esp_status launch_held(const KdCall& call, esp::Kernels& kernels) {
  return call.arguments.student.dtype == ESP_BF16 ? launch_held_of<bf16>(call, kernels)
                                                  : launch_held_of<f16>(call, kernels);
}

}  // namespace
