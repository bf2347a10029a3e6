// kd_softmax_loss: loss of distillation and its gradient; formulas in espalier/kd_softmax_loss.h, and in the
// CPU's kernel how sums of exponentials relative to powers of two come together exactly.
//
// Layout: rows of logits [C]. A block has a segment of 2048 columns, a thread two groups of 4. Rows of at
// most 32 columns have 4 threads each. Numerics: the CPU's operations in the CPU's order, bit for bit: a
// segment's exponentials lie in shared memory, where each of 128 threads adds up 16 of them as one lane of
// the CPU does; double from there. Idea: rows of one segment are read once: measured, settled and
// differentiated by one block. Of longer rows the block that comes last settles, and a second kernel computes
// the exponentials again. Bytes an element (F32): 12 for rows of one segment, 20 beyond. Longer rows of
// 16-bit logits are held by a cluster of blocks (kd_softmax_loss_held.cuh). Order of kernels: labels; narrow
// or wide rows; gradient of rows of several segments; or held rows, and those that they left. The last block
// of the last one adds up.
#include "kd_softmax_loss_held.cuh"
#include "kd_softmax_loss_row.cuh"

namespace {

constexpr int own = 8, group = 4;
constexpr int groups = own / group, group_step = threads * group;
constexpr int sub_blocks = static_cast<int>(kd_segment) / 256,
              sub_pitch = 256 + 16;  // the 16 keep banks apart

// ---- columns of a segment

template <class T>
__device__ __forceinline__ void load_groups(const T* p, int n, float (&values)[own]) {
  ESP_GLOBAL(p);
  const bool whole = esp::is_aligned(p, group * sizeof(T));
  esp::Pack<T, group> pack[groups];
#pragma unroll
  for (int k = 0; k < groups; k++) {
    pack[k] = esp::load_pack<group>(p, k * group_step + static_cast<int>(threadIdx.x) * group, n, whole);
  }
#pragma unroll
  for (int j = 0; j < own; j++) values[j] = esp::to_float(pack[j / group].at[j % group]);
}
// A thread's columns of a segment that begins at p and has n; 0 beyond.
__device__ __forceinline__ void load_own(esp_dtype dtype, const char* p, int n, float (&values)[own]) {
  if (dtype == ESP_BF16) {
    load_groups(reinterpret_cast<const bf16*>(p), n, values);
  } else if (dtype == ESP_F16) {
    load_groups(reinterpret_cast<const f16*>(p), n, values);
  } else {
    load_groups(reinterpret_cast<const float*>(p), n, values);
  }
}
// Columns of student and teacher (or nullptr) where no group is cut: all on their way together, where load_own would wait
// for the student's before it asks for the teacher's.
template <class T>
__device__ __forceinline__ void load_whole(const char* student_columns, const char* teacher_columns, int n, float (&s)[own],
                                           float (&t)[own]) {
  using Raw = esp::RawPack<group, T>;
  const T* const student = reinterpret_cast<const T*>(student_columns);
  const T* const teacher = reinterpret_cast<const T*>(teacher_columns);
  Raw of_student[groups], of_teacher[groups];
  ESP_GLOBAL(student);
#pragma unroll
  for (int k = 0; k < groups; k++) {
    const int at = k * group_step + static_cast<int>(threadIdx.x) * group;
    of_student[k] = {};
    of_teacher[k] = {};
    if (at < n) of_student[k] = *reinterpret_cast<const Raw*>(student + at);
    if (teacher != nullptr && at < n) {
      ESP_GLOBAL(teacher);
      of_teacher[k] = *reinterpret_cast<const Raw*>(teacher + at);
    }
  }
#pragma unroll
  for (int j = 0; j < own; j++) {
    s[j] = esp::to_float(esp::bits_as<esp::Pack<T, group>>(of_student[j / group]).at[j % group]);
    t[j] = esp::to_float(esp::bits_as<esp::Pack<T, group>>(of_teacher[j / group]).at[j % group]);
  }
}
// A thread's columns of student and teacher in the segment of a row that begins at column `first`.
__device__ __forceinline__ void load_both(const esp_kd_softmax_loss_arguments& a, int64_t row, int64_t first,
                                          int n, float (&s)[own], float (&t)[own]) {
  const bool soft = a.teacher.data != nullptr;
  const int bytes = group * (a.student.dtype == ESP_F32 ? 4 : 2);
  const char* const student = row_of(a.student, row) + first * (a.student.dtype == ESP_F32 ? 4 : 2);
  const char* const teacher = soft ? row_of(a.teacher, row) + first * (a.teacher.dtype == ESP_F32 ? 4 : 2) : nullptr;
  if ((!soft || a.teacher.dtype == a.student.dtype) && n % group == 0 && esp::is_aligned(student, bytes) &&
      esp::is_aligned(teacher, bytes)) {
    if (a.student.dtype == ESP_BF16) return load_whole<bf16>(student, teacher, n, s, t);
    if (a.student.dtype == ESP_F16) return load_whole<f16>(student, teacher, n, s, t);
    return load_whole<float>(student, teacher, n, s, t);
  }
  load_own(a.student.dtype, student, n, s);
  if (soft) load_own(a.teacher.dtype, teacher, n, t);
}
// The j-th column of a thread within the segment, and its place in shared memory.
__device__ __forceinline__ int column_of(int j) {
  return j / group * group_step + static_cast<int>(threadIdx.x) * group + j % group;
}
__device__ __forceinline__ int place_of(int column) {
  return column / 256 * sub_pitch + column % 256;
}

// ---- one segment by one block

struct Segment {
  float student[sub_blocks * sub_pitch], teacher[sub_blocks * sub_pitch], hard[sub_blocks * sub_pitch];
  float quotient[sub_blocks * sub_pitch], excess[sub_blocks * sub_pitch];
  float parts[4][threads / 2];  // student, teacher, hard, difference: a sum a lane of a sub-block
  float ranges[3][threads / 32];
  double totals[5];
};
// Subtracted from the logits; `exact` where they lie so far apart that the terms of kl need a pass of their
// own.
struct Base {
  float student, teacher;
  bool exact;
};

// The exponentials of a segment, and max(0, s - b), to shared memory.
__device__ __forceinline__ void fill(const KdCall& call, const KdPowers& powers, int64_t row, int64_t first,
                                     int n, const Base& base, const KdSegmentSums& sums,
                                     const float (&s)[own], const float (&t)[own], Segment& segment) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const bool soft = a.teacher.data != nullptr;
  const float s_origin = origin_of(powers.soft, static_cast<float>(sums.student_exponent));
  const float t_origin = origin_of(powers.soft, static_cast<float>(sums.teacher_exponent));
  const float h_origin = origin_of(powers.hard, static_cast<float>(sums.hard_exponent));
#pragma unroll
  for (int j = 0; j < own; j++) {
    const int at = place_of(column_of(j));
    const bool inside = column_of(j) < n;
    const float v = s[j] - base.student;
    const Power p = exp2_scaled(v, powers.soft, s_origin);
    segment.student[at] = inside ? p.value : 0.0f;
    if (soft) {
      const Power q = exp2_scaled(t[j] - base.teacher, powers.soft, t_origin);
      segment.teacher[at] = inside ? q.value : 0.0f;
      segment.quotient[at] = inside ? (q.exponent - p.exponent) + (q.fraction - p.fraction) : 0.0f;
    }
    if (powers.power == 0) segment.hard[at] = inside ? exp2_scaled(v, powers.hard, h_origin).value : 0.0f;
  }
  if (a.bound.data != nullptr) {
    float b[own];
    load_own(a.bound.dtype, row_of(a.bound, row) + first * (a.bound.dtype == ESP_F32 ? 4 : 2), n, b);
#pragma unroll
    for (int j = 0; j < own; j++) {
      segment.excess[place_of(column_of(j))] = column_of(j) < n ? excess_of(s[j], b[j]) : 0.0f;
    }
  }
}

// Sums of a segment, to `result` by thread 0; what fill() wrote stays. By all threads of a block.
__device__ __forceinline__ void measure(const KdCall& call, const KdPowers& powers, int64_t row,
                                        int64_t index, const Base& base, Segment& segment,
                                        KdSegmentSums* result) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const int64_t first = index * kd_segment;
  const int n = static_cast<int>(a.classes - first < kd_segment ? a.classes - first : kd_segment);
  const int thread = static_cast<int>(threadIdx.x);
  const bool soft = a.teacher.data != nullptr;
  const int power = powers.power;
  float s[own], t[own];
  load_both(a, row, first, n, s, t);

  float s_max = -infinity, s_min = infinity, t_max = -infinity;
#pragma unroll
  for (int j = 0; j < own; j++) {
    if (column_of(j) < n) {
      s_max = most(s[j] - base.student, s_max);
      s_min = least(s[j] - base.student, s_min);
      if (soft) t_max = most(t[j] - base.teacher, t_max);
    }
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    s_max = most(s_max, __shfl_xor_sync(esp::all_lanes, s_max, apart));
    s_min = least(s_min, __shfl_xor_sync(esp::all_lanes, s_min, apart));
    t_max = most(t_max, __shfl_xor_sync(esp::all_lanes, t_max, apart));
  }
  if (esp::lane_index() == 0) {
    segment.ranges[0][esp::warp_index()] = s_max;
    segment.ranges[1][esp::warp_index()] = s_min;
    segment.ranges[2][esp::warp_index()] = t_max;
  }
  __syncthreads();  // and the segment before has been used
#pragma unroll
  for (int warp = 0; warp < threads / 32; warp++) {
    s_max = most(s_max, segment.ranges[0][warp]);
    s_min = least(s_min, segment.ranges[1][warp]);
    t_max = most(t_max, segment.ranges[2][warp]);
  }
  KdSegmentSums sums;
  sums.student_max = s_max;
  sums.student_min = s_min;
  sums.teacher_max = soft ? t_max : 0.0f;
  const float s_exponent = exponent_of(powers.soft, s_max), h_exponent = exponent_of(powers.hard, s_max);
  sums.student_exponent = s_exponent;
  sums.teacher_exponent = soft ? exponent_of(powers.soft, t_max) : 0.0f;
  sums.hard_exponent = power == 0 ? h_exponent : power * static_cast<double>(s_exponent);
  KdSegmentSums origins = sums;
  origins.hard_exponent = h_exponent;
  fill(call, powers, row, first, n, base, origins, s, t, segment);
  __syncthreads();

  // Lane l of 16 of sub-block b, 16 columns apart.
  const int part = thread % (threads / 2), from = part / 16 * sub_pitch + part % 16;
  if (thread < threads / 2) {
    float student = 0, hard = 0;
#pragma unroll
    for (int i = 0; i < 256; i += 16) {
      const float x = segment.student[from + i];
      student = student + x;
      if (power == 0) {
        hard = hard + segment.hard[from + i];
      } else if (power != 1) {
        hard = hard + hard_power(power, x);
      }
    }
    segment.parts[0][part] = student;
    segment.parts[2][part] = power == 1 ? student : hard;
  } else if (soft) {
    float teacher = 0, difference = 0;
#pragma unroll
    for (int i = 0; i < 256; i += 16) {
      const float w = segment.teacher[from + i];
      teacher = teacher + w;
      difference = fmaf(w, segment.quotient[from + i], difference);
    }
    segment.parts[1][part] = teacher;
    segment.parts[3][part] = difference;
  }
  __syncthreads();
  // Half a warp a sum: student, teacher, hard, difference, bound. 8 lanes of double and 8 more, then a tree.
  if (thread < 96) {
    const int which = thread / 16, lane = thread % 16;
    double sum = 0;
    if (which < 4 && (soft || which % 2 == 0)) {
#pragma unroll
      for (int b = 0; b < sub_blocks; b++) sum += static_cast<double>(segment.parts[which][b * 16 + lane]);
    } else if (which == 4 && a.bound.data != nullptr) {
      for (int column = lane; column < n; column += 16) {
        const double v = static_cast<double>(segment.excess[place_of(column)]);
        sum = fma(v, v, sum);
      }
    }
#pragma unroll
    for (int half = 8; half > 0; half /= 2) sum += __shfl_down_sync(esp::all_lanes, sum, half, 16);
    if (lane == 0 && which < 5) segment.totals[which] = sum;
  }
  __syncthreads();
  if (thread != 0) return;
  sums.student = segment.totals[0];
  sums.teacher = soft ? segment.totals[1] : 1.0;
  sums.hard = segment.totals[2];
  sums.difference = soft ? segment.totals[3] : 0.0;
  sums.bound = segment.totals[4];
  if (base.exact && soft) {
    const double offset = sums.teacher_exponent - sums.student_exponent;
    double difference = 0;
    for (int i = 0; i < n; i++) {
      const double w = static_cast<double>(segment.teacher[place_of(i)]);
      if (w != 0) {
        const float x = element(a.student, row, first + i) - base.student,
                    y = element(a.teacher, row, first + i) - base.teacher;
        difference += w * ((static_cast<double>(y) - static_cast<double>(x)) * powers.soft.scale - offset);
      }
    }
    sums.difference = difference;
  }
  *result = sums;
}

// Sums of a row from those of its segments, all of which are measured; measures again what lies far. By all
// threads of a block.
__device__ __forceinline__ void settle(const KdCall& call, const KdPowers& powers, int64_t row,
                                       Segment& segment) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  KdSegmentSums* const sums = call.sums + row * call.segments;
  const int thread = static_cast<int>(threadIdx.x);
  const bool soft = a.teacher.data != nullptr;
  Base base = {0, 0, false};
  __syncthreads();
  float s_max = -infinity, s_min = infinity, t_max = -infinity;
  for (int64_t k = 0; k < call.segments; k++) {
    s_max = most(sums[k].student_max, s_max);
    t_max = most(sums[k].teacher_max, t_max);
    s_min = least(sums[k].student_min, s_min);
  }
  const bool s_finite = fabsf(s_max) <= largest, t_finite = fabsf(t_max) <= largest;
  const double scale = powers.hard.scale > powers.soft.scale ? powers.hard.scale : powers.soft.scale;
  const bool s_far = s_finite && fabs(static_cast<double>(s_max)) * scale >= far_exponent;
  const bool t_far = soft && t_finite && fabs(static_cast<double>(t_max)) * scale >= far_exponent;
  const bool apart = soft && s_min < powers.soft.lowest;
  if (s_finite && t_finite && (s_far || t_far || apart)) {
    base = {s_far ? s_max : 0.0f, t_far ? t_max : 0.0f, true};
    for (int64_t k = 0; k < call.segments; k++) measure(call, powers, row, k, base, segment, sums + k);
  }
  if (thread != 0) return;
  double s_exponent = sums[0].student_exponent, t_exponent = sums[0].teacher_exponent,
         h_exponent = sums[0].hard_exponent;
  for (int64_t k = 1; k < call.segments; k++) {
    s_exponent = sums[k].student_exponent > s_exponent ? sums[k].student_exponent : s_exponent;
    t_exponent = sums[k].teacher_exponent > t_exponent ? sums[k].teacher_exponent : t_exponent;
    h_exponent = sums[k].hard_exponent > h_exponent ? sums[k].hard_exponent : h_exponent;
  }
  RowSums g = {};
  for (int64_t k = 0; k < call.segments; k++) {
    const KdSegmentSums& part = sums[k];
    const double student = part.student_exponent - s_exponent, teacher = part.teacher_exponent - t_exponent;
    const double weight = power_of_two(teacher);
    g.student += part.student * power_of_two(student);
    g.teacher += part.teacher * weight;
    g.hard += part.hard * power_of_two(part.hard_exponent - h_exponent);
    if (weight != 0) g.difference += weight * (part.difference + (teacher - student) * part.teacher);
    g.bound += part.bound;
  }
  g.hard_exponent = h_exponent;
  g.base = base.student;
  g.student_lost = !s_finite || !is_finite(g.student) || !is_finite(g.hard);
  g.teacher_lost = !t_finite || !is_finite(g.teacher);
  g.column = label_of(call, row);
  g.label_logit = g.column < 0 ? 0.0f : element(a.student, row, g.column);
  record_terms(call, row, g);
  call.row[row] = {s_exponent, t_exponent, h_exponent, base.student, base.teacher, coefficients_of(call, g)};
}

// ---- the gradient of one segment

template <class G>
__device__ __forceinline__ void store_groups(G* p, int n, const float (&values)[own]) {
  ESP_GLOBAL(p);
  const bool whole = esp::is_aligned(p, group * sizeof(G));
#pragma unroll
  for (int k = 0; k < groups; k++) {
    esp::Pack<G, group> pack;
#pragma unroll
    for (int j = 0; j < group; j++) pack.at[j] = esp::from_float<G>(values[k * group + j]);
    esp::store_pack(p, k * group_step + static_cast<int>(threadIdx.x) * group, n, whole, pack);
  }
}
__device__ __forceinline__ void store_own(const KdCall& call, int64_t row, int64_t first, int n,
                                          const float (&values)[own]) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const int64_t at = row * a.gradient_stride + first;
  if (a.gradient_dtype == ESP_BF16) {
    store_groups(static_cast<bf16*>(a.gradient) + at, n, values);
  } else if (a.gradient_dtype == ESP_F16) {
    store_groups(static_cast<f16*>(a.gradient) + at, n, values);
  } else {
    store_groups(static_cast<float*>(a.gradient) + at, n, values);
  }
}
__device__ __forceinline__ void store_element(const KdCall& call, int64_t row, int64_t column, float value) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const int64_t at = row * a.gradient_stride + column;
  if (a.gradient_dtype == ESP_BF16) {
    static_cast<bf16*>(a.gradient)[at] = esp::from_float<bf16>(value);
  } else if (a.gradient_dtype == ESP_F16) {
    static_cast<f16*>(a.gradient)[at] = esp::from_float<f16>(value);
  } else {
    static_cast<float*>(a.gradient)[at] = value;
  }
}

// From what fill() left in shared memory; each thread reads what it wrote.
__device__ __forceinline__ void differentiate(const KdCall& call, const KdPowers& powers, int64_t row,
                                              int64_t index, const KdRow& r, const KdSegmentSums& sums,
                                              const Segment& segment) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const int64_t first = index * kd_segment;
  const int n = static_cast<int>(a.classes - first < kd_segment ? a.classes - first : kd_segment);
  const KdCoefficients c = r.coefficients;
  const bool soft = a.teacher.data != nullptr, bounded = a.bound.data != nullptr;
  const float s_scale = static_cast<float>(power_of_two(sums.student_exponent - r.student_exponent));
  const float t_scale = static_cast<float>(power_of_two(sums.teacher_exponent - r.teacher_exponent));
  const float h_scale = static_cast<float>(power_of_two(sums.hard_exponent - r.hard_exponent));
  const int64_t label = c.column - first;
  float g[own];
#pragma unroll
  for (int j = 0; j < own; j++) {
    const int at = place_of(column_of(j));
    g[j] = gradient_of(c, powers.power, soft, bounded, segment.student[at] * s_scale,
                       soft ? segment.teacher[at] * t_scale : 0.0f,
                       powers.power == 0 ? segment.hard[at] * h_scale : 0.0f,
                       bounded ? segment.excess[at] : 0.0f);
    if (c.column >= 0 && label == column_of(j)) g[j] = g[j] - c.label;
    if (c.lost) g[j] = quiet_nan();
  }
  store_own(call, row, first, n, g);
}

// The same from the logits.
__device__ __forceinline__ void differentiate_again(const KdCall& call, int64_t row, int64_t index,
                                                    Segment& segment) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const KdPowers& powers = powers_of(call);
  const KdRow r = call.row[row];
  const KdSegmentSums sums = call.sums[row * call.segments + index];
  const int64_t first = index * kd_segment;
  const int n = static_cast<int>(a.classes - first < kd_segment ? a.classes - first : kd_segment);
  float s[own], t[own];
  load_both(a, row, first, n, s, t);
  KdSegmentSums origins = sums;
  if (powers.power != 0) origins.hard_exponent = 0;  // not used
  fill(call, powers, row, first, n, {r.student_base, r.teacher_base, false}, origins, s, t, segment);
  differentiate(call, powers, row, index, r, sums, segment);
}

__device__ __forceinline__ void fill_zero(const KdCall& call, int64_t row, int64_t index) {
  const int64_t first = index * kd_segment, left = call.arguments.classes - first;
  const float zeros[own] = {};
  store_own(call, row, first, static_cast<int>(left < kd_segment ? left : kd_segment), zeros);
}

// ---- results

// By the last block of the last kernel.
__device__ void add_up(const KdCall& call, Segment& segment) {
  KdState* const state = call.state;
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  double* const lanes = reinterpret_cast<double*>(segment.student);
  static_assert(sizeof segment.student + sizeof segment.teacher >= 3 * threads * sizeof(double),
                "three sums a thread");
  const int thread = static_cast<int>(threadIdx.x);
  for (int part = 0; part < 3; part++) {
    double sum = 0;
    if (state->is_bad == 0) {
      for (int64_t row = thread; row < a.rows; row += threads) sum += call.terms[part * a.rows + row];
    }
    lanes[part * threads + thread] = sum;
  }
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      for (int part = 0; part < 3; part++)
        lanes[part * threads + thread] += lanes[part * threads + thread + half];
    }
  }
  if (thread != 0) return;
  esp_cuda_kd_softmax_loss_result result = state->result;
  esp_kd_softmax_loss_result& values = result.values;
  if (state->is_bad == 0) {
    values.ce = values.valid > 0 ? lanes[0] / static_cast<double>(values.valid) : 0;
    values.kl = values.rows > 0 ? lanes[threads] / static_cast<double>(values.rows) : 0;
    values.bound = values.rows > 0 ? lanes[2 * threads] / static_cast<double>(values.rows) : 0;
    values.loss = a.alpha * values.ce + (1 - a.alpha) * values.kl + a.beta * values.bound;
  }
  *call.result = result;
}

// ---- kernels

// Counts rows and labels, and finds what is a label of no class.
__global__ void __launch_bounds__(threads) kd_softmax_loss_labels_kernel(KdCall call) {
  esp::let_next_begin();
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  KdState* const state = call.state;
  const int64_t first = blockIdx.x * esp::kd_checked_rows;
  const int64_t end = first + esp::kd_checked_rows < a.rows ? first + esp::kd_checked_rows : a.rows;
  int rows = 0, valid = 0;
  for (int64_t row = first + threadIdx.x; row < end; row += threads) {
    if (!kept(call, row)) continue;
    rows++;
    const int64_t label = a.labels == nullptr ? a.ignore_index : a.labels[row];
    if (label == a.ignore_index) continue;
    valid++;
    if (label < 0 || label >= a.classes)
      atomicMax(&state->bad, static_cast<unsigned long long>(INT64_MAX - row));
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    rows += __shfl_xor_sync(esp::all_lanes, rows, apart);
    valid += __shfl_xor_sync(esp::all_lanes, valid, apart);
  }
  if (esp::lane_index() == 0) {
    atomicAdd(&state->rows, static_cast<unsigned long long>(rows));
    atomicAdd(&state->valid, static_cast<unsigned long long>(valid));
  }
  if (!esp::is_last_block(&state->arrived, gridDim.x) || threadIdx.x != 0) return;
  const int64_t n = static_cast<int64_t>(state->rows),
                n_valid = a.labels == nullptr ? 0 : static_cast<int64_t>(state->valid);
  const unsigned long long bad = state->bad;
  state->rows = state->valid = state->bad = 0;
  state->is_bad = bad != 0 ? 1 : 0;
  state->labels_used = n_valid > 0 ? 1 : 0;
  state->alpha = n_valid > 0 ? a.alpha / static_cast<double>(n_valid) : 0;
  state->soft_weight = n > 0 ? (1 - a.alpha) * a.temperature / static_cast<double>(n) : 0;
  state->bound_weight = n > 0 ? 2 * a.beta / static_cast<double>(n) : 0;
  state->result = {{0, 0, 0, 0, bad != 0 ? 0 : n, bad != 0 ? 0 : n_valid},
                   bad != 0 ? INT64_MAX - static_cast<int64_t>(bad) : -1};
}

// A segment a block.
__global__ void __launch_bounds__(threads, 2) kd_softmax_loss_wide_kernel(KdCall call, bool ends) {
  ESP_SHARED(Segment, segments, [1]);
  Segment& segment = segments[0];
  if (!ends) esp::let_next_begin();
  esp::wait_for_kernel_before();
  const int64_t row = blockIdx.x / call.segments, index = blockIdx.x % call.segments;
  const bool writes = call.arguments.gradient != nullptr && call.segments == 1;
  if (row < call.arguments.rows && call.state->is_bad == 0) {
    if (looked_at(call, row)) {
      const KdPowers& powers = powers_of(call);
      KdSegmentSums* const sums = call.sums + row * call.segments;
      measure(call, powers, row, index, {0, 0, false}, segment, sums + index);
      if (call.segments == 1 ||
          esp::is_last_block(call.arrived + row, static_cast<uint32_t>(call.segments))) {
        settle(call, powers, row, segment);
        if (writes) {
          __syncthreads();
          differentiate(call, powers, row, 0, call.row[row], sums[0], segment);
        }
      }
    } else {
      if (index == 0 && threadIdx.x == 0) clear_terms(call, row);
      if (writes) fill_zero(call, row, 0);
    }
  }
  if (ends && esp::is_last_block(&call.state->arrived, gridDim.x)) add_up(call, segment);
}

// The gradient of rows of several segments, one a block.
__global__ void __launch_bounds__(threads, 2) kd_softmax_loss_gradient_kernel(KdCall call) {
  ESP_SHARED(Segment, segments, [1]);
  Segment& segment = segments[0];
  esp::wait_for_kernel_before();
  const int64_t row = blockIdx.x / call.segments, index = blockIdx.x % call.segments;
  if (call.state->is_bad == 0) {
    if (looked_at(call, row)) {
      differentiate_again(call, row, index, segment);
    } else {
      fill_zero(call, row, index);
    }
  }
  if (esp::is_last_block(&call.state->arrived, gridDim.x)) add_up(call, segment);
}

// A row that another way left, by one block: with logits of a million or with -inf. Such rows are few, or
// slow.
__device__ __forceinline__ void far_row(const KdCall& call, int64_t row, Segment& segment) {
  for (int64_t index = 0; index < call.segments; index++) {
    measure(call, powers_of(call), row, index, {0, 0, false}, segment,
            call.sums + row * call.segments + index);
  }
  settle(call, powers_of(call), row, segment);
  __syncthreads();
  for (int64_t index = 0; call.arguments.gradient != nullptr && index < call.segments; index++)
    differentiate_again(call, row, index, segment);
}

// After rows that were held.
__global__ void __launch_bounds__(threads, 2) kd_softmax_loss_far_kernel(KdCall call) {
  ESP_SHARED(Segment, segments, [1]);
  Segment& segment = segments[0];
  esp::wait_for_kernel_before();
  // measure() waits for all threads before it writes what the row before has used.
  for (uint32_t i = blockIdx.x; i < call.state->far_rows; i += gridDim.x) far_row(call, call.far[i], segment);
  if (!esp::is_last_block(&call.state->arrived, gridDim.x)) return;
  if (threadIdx.x == 0) call.state->far_rows = 0;
  add_up(call, segment);
}

// ---- rows of at most 64 columns: 4 threads each, which have every fourth column

template <int quarter, class T>
__device__ __forceinline__ void load_quarter(const T* p, int classes, int lane, float (&values)[quarter]) {
  ESP_GLOBAL(p);
#pragma unroll
  for (int k = 0; k < quarter; k++)
    values[k] = k * 4 + lane < classes ? esp::to_float(p[k * 4 + lane]) : 0.0f;
}
template <int quarter>
__device__ __forceinline__ void load_quarter(const esp_logits& logits, int64_t row, int classes, int lane,
                                             float (&values)[quarter]) {
  const char* const p = row_of(logits, row);
  if (logits.dtype == ESP_BF16) {
    load_quarter(reinterpret_cast<const bf16*>(p), classes, lane, values);
  } else if (logits.dtype == ESP_F16) {
    load_quarter(reinterpret_cast<const f16*>(p), classes, lane, values);
  } else {
    load_quarter(reinterpret_cast<const float*>(p), classes, lane, values);
  }
}
// (0 + 1) + (2 + 3), in all 4.
__device__ __forceinline__ float sum_of_four(float x) {
  x = x + __shfl_xor_sync(esp::all_lanes, x, 1);
  return x + __shfl_xor_sync(esp::all_lanes, x, 2);
}

// Called by whole warps; false for a row that takes the way of wide ones.
template <int quarter>
__device__ __forceinline__ bool narrow_row(const KdCall& call, const KdPowers& powers, int64_t row,
                                           bool looked) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const int classes = static_cast<int>(a.classes), lane = static_cast<int>(threadIdx.x) % 4,
            power = powers.power;
  const bool soft = a.teacher.data != nullptr, bounded = a.bound.data != nullptr;
  float s[quarter] = {}, t[quarter] = {};
  if (looked) {
    load_quarter(a.student, row, classes, lane, s);
    if (soft) load_quarter(a.teacher, row, classes, lane, t);
  }
  float s_max = -infinity, s_min = infinity, t_max = -infinity;
#pragma unroll
  for (int k = 0; k < quarter; k++) {
    if (k * 4 + lane < classes) {
      s_max = most(s[k], s_max);
      s_min = least(s[k], s_min);
      if (soft) t_max = most(t[k], t_max);
    }
  }
#pragma unroll
  for (int apart = 2; apart > 0; apart /= 2) {
    s_max = most(s_max, __shfl_xor_sync(esp::all_lanes, s_max, apart));
    s_min = least(s_min, __shfl_xor_sync(esp::all_lanes, s_min, apart));
    t_max = most(t_max, __shfl_xor_sync(esp::all_lanes, t_max, apart));
  }
  const float scale = powers.hard.high > powers.soft.high ? powers.hard.high : powers.soft.high;
  const float limit = static_cast<float>(far_exponent);
  bool near = fabsf(s_max) * scale < limit;
  const bool s_finite = fabsf(s_max) <= largest, t_finite = !soft || fabsf(t_max) <= largest;
  if (soft) near = near && fabsf(t_max) * scale < limit && powers.soft.lowest <= s_min;
  const bool far = looked && s_finite && t_finite && !near;

  const float s_exponent = exponent_of(powers.soft, s_max), t_exponent = exponent_of(powers.soft, t_max);
  const float h_exponent = exponent_of(powers.hard, s_max);
  const float s_origin = origin_of(powers.soft, s_exponent), t_origin = origin_of(powers.soft, t_exponent);
  const float h_origin = origin_of(powers.hard, h_exponent);
  // From a register: where the gradient is written in place, another lane may be ahead.
  RowSums g = {};
  g.column = looked ? label_of(call, row) : -1;
#pragma unroll
  for (int k = 0; k < quarter; k++) g.label_logit = g.column / 4 == k ? s[k] : g.label_logit;
  g.label_logit = __shfl_sync(esp::all_lanes, g.label_logit, static_cast<int>(g.column & 3), 4);
  float excess[quarter] = {};
  if (bounded) {
    float b[quarter] = {};
    if (looked) load_quarter(a.bound, row, classes, lane, b);
#pragma unroll
    for (int k = 0; k < quarter; k++) {
      if (k * 4 + lane < classes) excess[k] = excess_of(s[k], b[k]);
#pragma unroll
      for (int other = 0; other < 4; other++) {
        const double v = static_cast<double>(__shfl_sync(esp::all_lanes, excess[k], other, 4));
        g.bound = fma(v, v, g.bound);
      }
    }
  }
  // Exponentials in place of the logits.
  float h[quarter] = {}, student = 0, teacher = 0, hard = 0, difference = 0;
#pragma unroll
  for (int k = 0; k < quarter; k++) {
    if (k * 4 + lane < classes) {
      if (power == 0) {
        h[k] = exp2_scaled(s[k], powers.hard, h_origin).value;
        hard = hard + h[k];
      }
      const Power p = exp2_scaled(s[k], powers.soft, s_origin);
      s[k] = p.value;
      student = student + s[k];
      if (soft) {
        const Power q = exp2_scaled(t[k], powers.soft, t_origin);
        t[k] = q.value;
        teacher = teacher + t[k];
        difference = fmaf(t[k], (q.exponent - p.exponent) + (q.fraction - p.fraction), difference);
      }
      if (power > 1) hard = hard + hard_power(power, s[k]);
    }
  }
  student = sum_of_four(student);
  teacher = sum_of_four(teacher);
  difference = sum_of_four(difference);
  hard = power == 1 ? student : sum_of_four(hard);

  if (!looked || far) return !far;

  g.student = static_cast<double>(student);
  g.teacher = soft ? static_cast<double>(teacher) : 1.0;
  g.hard = static_cast<double>(hard);
  g.difference = soft ? static_cast<double>(difference) : 0.0;
  g.hard_exponent = static_cast<double>(power == 0 ? h_exponent : s_exponent * static_cast<float>(power));
  g.student_lost = !(s_finite && student <= largest && hard <= largest);
  g.teacher_lost = soft && !(t_finite && teacher <= largest);
  if (lane == 0) record_terms(call, row, g);
  const KdCoefficients c = coefficients_of(call, g);
  if (a.gradient == nullptr) return true;
#pragma unroll
  for (int k = 0; k < quarter; k++) {
    const int column = k * 4 + lane;
    if (column < classes) {
      float value = gradient_of(c, power, soft, bounded, s[k], t[k], h[k], excess[k]);
      if (column == c.column) value = value - c.label;
      store_element(call, row, column, c.lost ? quiet_nan() : value);
    }
  }
  return true;
}

template <int quarter>
__global__ void __launch_bounds__(threads, quarter > 8 ? 1 : 2) kd_softmax_loss_narrow_kernel(KdCall call) {
  ESP_SHARED(Segment, segments, [1]);
  Segment& segment = segments[0];
  esp::wait_for_kernel_before();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * esp::kd_narrow_rows + threadIdx.x / 4;
  const bool exists = row < call.arguments.rows && call.state->is_bad == 0,
             looked = exists && looked_at(call, row);
  const KdPowers& powers = powers_of(call);
  const bool done = narrow_row<quarter>(call, powers, row, looked);
  if (exists && !looked) {
    if (threadIdx.x % 4 == 0) clear_terms(call, row);
    for (int64_t c = threadIdx.x % 4; call.arguments.gradient != nullptr && c < call.arguments.classes;
         c += 4) {
      store_element(call, row, c, 0.0f);
    }
  }
  if (!done && threadIdx.x % 4 == 0) call.far[atomicAdd(&call.state->far_rows, 1u)] = row;
  if (!esp::is_last_block(&call.state->arrived, gridDim.x)) return;
  const uint32_t far_rows = call.state->far_rows;
  for (uint32_t i = 0; i < far_rows; i++) far_row(call, call.far[i], segment);
  __syncthreads();
  if (threadIdx.x == 0) call.state->far_rows = 0;
  add_up(call, segment);
}

}  // namespace

esp_status esp::launch_kd_softmax_loss(const KdCall& call, const DeviceLimits& limits, void* stream) {
  const esp_kd_softmax_loss_arguments& a = call.arguments;
  const int64_t rows = a.rows > 0 ? a.rows : 1;  // no rows have a result too
  Kernels kernels(limits, stream);
  if (esp_status status = kernels.launch("kd_softmax_loss labels", kd_softmax_loss_labels_kernel,
                                         (rows + kd_checked_rows - 1) / kd_checked_rows, threads, call)) {
    return status;
  }
  if (a.classes <= kd_narrow) {
    return kernels.launch("kd_softmax_loss of narrow rows",
                          a.classes <= kd_narrow / 2 ? kd_softmax_loss_narrow_kernel<kd_narrow / 8>
                                                     : kd_softmax_loss_narrow_kernel<kd_narrow / 4>,
                          (rows + kd_narrow_rows - 1) / kd_narrow_rows, threads, call);
  }
  if (call.hold.blocks > 0) {
    if (esp_status status = a.rows == 0 ? ESP_OK : launch_held(call, kernels)) return status;
    return kernels.launch("kd_softmax_loss of far rows", kd_softmax_loss_far_kernel, kd_far_blocks, threads,
                          call);
  }
  const bool ends = call.segments == 1 || a.gradient == nullptr || a.rows == 0;
  if (esp_status status = kernels.launch("kd_softmax_loss", kd_softmax_loss_wide_kernel, rows * call.segments,
                                         threads, call, ends)) {
    return status;
  }
  if (ends) return ESP_OK;
  return kernels.launch("kd_softmax_loss gradient", kd_softmax_loss_gradient_kernel, rows * call.segments,
                        threads, call);
}
