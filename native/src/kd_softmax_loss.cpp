#include "espalier/kd_softmax_loss.h"

#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "kd_softmax_loss_arguments.h"
#include "thread_pool.h"

namespace {

using esp::kd_operation;

// Scratch memory of a thread, kept between calls: fresh pages would cost more than the rows computed on them.
class ThreadScratch {
 public:
  ~ThreadScratch() { std::free(memory_); }
  // nullptr where there is no memory.
  float* get(int64_t floats) {
    if (floats > floats_) {
      std::free(memory_);
      const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) & ~size_t{63};
      memory_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      floats_ = memory_ == nullptr ? 0 : floats;
    }
    return memory_;
  }
  // Gives back what only a rare call needs.
  void trim() {
    if (floats_ <= kept_floats) return;
    std::free(memory_);
    memory_ = nullptr;
    floats_ = 0;
  }

 private:
  static constexpr int64_t kept_floats = 1 << 20;
  float* memory_ = nullptr;
  int64_t floats_ = 0;
};
thread_local ThreadScratch thread_scratch, thread_terms;

bool kept(const esp_kd_softmax_loss_arguments& a, int64_t row) {
  return a.row_mask == nullptr || (a.row_mask[row >> 3] >> (row & 7) & 1) != 0;
}

// Counts the rows that have a label; refuses one that is no class.
esp_status count_labels(const esp_kd_softmax_loss_arguments& a, int64_t* valid) {
  *valid = 0;
  if (a.labels == nullptr) return ESP_OK;
  int64_t labelled = 0, wrong = 0;
  for (int64_t row = 0; row < a.rows; row++) {
    const int64_t label = a.labels[row];
    const bool is_class = static_cast<uint64_t>(label) < static_cast<uint64_t>(a.classes);
    const bool counts = label != a.ignore_index && kept(a, row);
    labelled += counts;
    wrong += counts && !is_class;
  }
  *valid = labelled;
  for (int64_t row = 0; wrong > 0 && row < a.rows; row++) {
    const int64_t label = a.labels[row];
    if ((label < 0 || label >= a.classes) && label != a.ignore_index && kept(a, row)) {
      return esp::fail(ESP_INVALID_ARGUMENT,
                       "%s: label %lld in row %lld is outside [0, %lld) and not ignore_index %lld", kd_operation,
                       static_cast<long long>(label), static_cast<long long>(row),
                       static_cast<long long>(a.classes), static_cast<long long>(a.ignore_index));
    }
  }
  return ESP_OK;
}

// In an order that only n decides, with several additions under way at once.
double sum(const double* terms, int64_t n) {
  constexpr int64_t chains = 8;
  double parts[chains] = {};
  int64_t i = 0;
  for (; i + chains <= n; i += chains) {
    for (int64_t k = 0; k < chains; k++) parts[k] += terms[i + k];
  }
  for (int64_t k = 0; i + k < n; k++) parts[k] += terms[i + k];
  return ((parts[0] + parts[4]) + (parts[2] + parts[6])) + ((parts[1] + parts[5]) + (parts[3] + parts[7]));
}

// Short rows go to a thread by this many bytes at least.
constexpr int64_t task_bytes = int64_t{64} << 10;
// A few long rows are cut up among the threads one after the other; of more, a thread takes several, as each
// is written beside the measuring of the next, but not so many that the last one to finish is waited for.
constexpr int64_t few_rows = 8, long_tasks_a_thread = 8;

}  // namespace

esp_status esp_kd_softmax_loss(const esp_kd_softmax_loss_arguments* arguments,
                               esp_kd_softmax_loss_result* result) {
  const esp::KdKernels* kernels;
  if (esp_status status = esp::select(esp::kd_softmax_loss_variants, &kernels)) return status;
  if (arguments == nullptr || result == nullptr) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%s: %s is NULL", kd_operation,
                     arguments == nullptr ? "arguments" : "result");
  }
  if (esp_status status = esp::check_kd(*arguments)) return status;

  esp::KdPlan plan;
  plan.arguments = *arguments;
  esp_kd_softmax_loss_arguments& a = plan.arguments;
  if (a.beta == 0) {
    a.bound.data = nullptr;
  } else if (a.bound.data == nullptr) {
    a.bound = a.teacher;
  }
  int64_t rows = a.rows, valid;
  if (esp_status status = count_labels(a, &valid)) return status;
  if (a.row_mask != nullptr) {
    rows = 0;
    for (int64_t row = 0; row < a.rows; row++) rows += kept(a, row) ? 1 : 0;
  }

  const double t = a.temperature;
  plan.labels_used = valid > 0;
  plan.teacher_used = a.teacher.data != nullptr;
  const esp::KdPowers powers = esp::powers_of(a, plan.labels_used);
  plan.power = powers.power;
  plan.soft = powers.soft;
  plan.hard = powers.hard;
  plan.alpha = valid > 0 ? a.alpha / static_cast<double>(valid) : 0;
  plan.soft_weight = rows > 0 ? (1 - a.alpha) * t / static_cast<double>(rows) : 0;
  plan.bound_weight = rows > 0 ? 2 * a.beta / static_cast<double>(rows) : 0;
  plan.temperature_squared = t * t;

  // The terms of each row, so that they add up in one order whoever computes them.
  constexpr int64_t near_rows = 256;
  double near_terms[3 * near_rows];
  double* terms = near_terms;
  if (a.rows > near_rows) terms = reinterpret_cast<double*>(thread_terms.get(6 * a.rows));
  if (terms == nullptr) {
    return esp::fail(ESP_OUT_OF_MEMORY, "%s: no memory for the terms of %lld rows", kd_operation,
                     static_cast<long long>(a.rows));
  }
  const bool all_rows = a.row_mask == nullptr && (plan.teacher_used || a.bound.data != nullptr);
  for (int64_t i = 0; !all_rows && i < 3 * a.rows; i++) terms[i] = 0;
  plan.ce = terms;
  plan.kl = terms + a.rows;
  plan.bound = terms + 2 * a.rows;

  const int64_t elements = a.rows * a.classes;
  const int64_t bytes =
      elements * (esp::size_of(a.student.dtype) + (plan.teacher_used ? esp::size_of(a.teacher.dtype) : 0) +
                  (a.gradient != nullptr ? esp::size_of(a.gradient_dtype) : 0));
  plan.stream = a.gradient != nullptr && elements * esp::size_of(a.gradient_dtype) >= esp::cache_bytes &&
                a.gradient != a.student.data && a.gradient != a.teacher.data && a.gradient != a.bound.data;
  const int64_t scratch_floats = kernels->scratch(plan);
  const int64_t segments = (a.classes + esp::kd_segment - 1) / esp::kd_segment;

  bool out_of_memory = false;
  if (segments > 1 && a.rows < few_rows && bytes >= esp::parallel_bytes) {
    float* scratch = thread_scratch.get(scratch_floats);
    std::unique_ptr<esp::KdSegmentSums[]> sums(new (std::nothrow)
                                                   esp::KdSegmentSums[static_cast<size_t>(segments)]);
    out_of_memory = scratch == nullptr || !sums;
    for (int64_t row = 0; row < a.rows && !out_of_memory; row++) {
      if (!kept(a, row) || (!plan.teacher_used && a.bound.data == nullptr &&
                            (a.labels == nullptr || a.labels[row] == a.ignore_index))) {
        kernels->rows(plan, row, 1, scratch);  // a gradient of zeros
        continue;
      }
      esp::parallel_for(segments, [&](int64_t k) { kernels->measure(plan, row, k, scratch, sums.get()); });
      const esp::KdCoefficients c = kernels->finish(plan, row, scratch, sums.get());
      esp::parallel_for(segments,
                        [&](int64_t k) { kernels->differentiate(plan, row, k, scratch, sums.get(), c); });
    }
    thread_scratch.trim();
  } else {
    const int64_t long_tasks = long_tasks_a_thread * esp::thread_limit();
    int64_t task_rows = (a.rows + long_tasks - 1) / long_tasks;
    if (segments == 1) {
      const int64_t row_bytes = a.rows > 0 ? bytes / a.rows : 1;
      task_rows =
          (task_bytes / (row_bytes > 0 ? row_bytes : 1) + esp::kd_group) / esp::kd_group * esp::kd_group;
    }
    const int64_t tasks =
        bytes < esp::parallel_bytes ? (a.rows > 0 ? 1 : 0) : (a.rows + task_rows - 1) / task_rows;
    if (tasks == 1) task_rows = a.rows;
    bool failed = false;
    const auto run = [&](int64_t task) {
      float* scratch = thread_scratch.get(scratch_floats);
      if (scratch == nullptr) {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
        return;
      }
      const int64_t first = task * task_rows;
      kernels->rows(plan, first, a.rows - first < task_rows ? a.rows - first : task_rows, scratch);
      thread_scratch.trim();
    };
    if (tasks == 1) {
      run(0);
    } else {
      esp::parallel_for(tasks, run);
    }
    out_of_memory = failed;
  }
  if (out_of_memory) {
    return esp::fail(ESP_OUT_OF_MEMORY,
                     "%s: no memory for %lld numbers of scratch; the gradient is incomplete", kd_operation,
                     static_cast<long long>(scratch_floats));
  }

  const double ce = sum(plan.ce, a.rows), kl = sum(plan.kl, a.rows), bound = sum(plan.bound, a.rows);
  thread_terms.trim();
  result->ce = valid > 0 ? ce / static_cast<double>(valid) : 0;
  result->kl = rows > 0 ? kl / static_cast<double>(rows) : 0;
  result->bound = rows > 0 ? bound / static_cast<double>(rows) : 0;
  result->loss = a.alpha * result->ce + (1 - a.alpha) * result->kl + a.beta * result->bound;
  result->rows = rows;
  result->valid = valid;
  return ESP_OK;
}
