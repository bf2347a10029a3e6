// What every device makes of the arguments: checks, and how the exponentials are taken.
#pragma once
#include <cmath>

#include "arguments.h"
#include "kd_softmax_loss_kernel.h"

namespace esp {

constexpr const char* kd_operation = "kd_softmax_loss";

inline esp_status check_logits(const char* name, const esp_logits& logits, int64_t rows, int64_t classes) {
  if (logits.data == nullptr) return ESP_OK;
  if (size_of(logits.dtype) == 0) {
    return fail(ESP_INVALID_ARGUMENT, "%s: %s has element type %d; F32 (0), BF16 (1) or F16 (2) is needed",
                kd_operation, name, logits.dtype);
  }
  if (logits.stride != 0 && logits.stride < classes) {
    return fail(ESP_INVALID_ARGUMENT,
                "%s: the rows of %s are %lld apart; %lld classes need that or more, or 0", kd_operation, name,
                static_cast<long long>(logits.stride), static_cast<long long>(classes));
  }
  if (rows > 0 && logits.stride > max_elements / rows) {
    return fail(ESP_INVALID_ARGUMENT, "%s: %lld rows of %s, %lld apart, are more than memory can hold",
                kd_operation, static_cast<long long>(rows), name, static_cast<long long>(logits.stride));
  }
  return ESP_OK;
}

// All but the labels.
inline esp_status check_kd(const esp_kd_softmax_loss_arguments& a) {
  if (a.rows < 0 || a.rows > max_elements || a.classes < 1 || a.classes > max_elements) {
    return fail(ESP_INVALID_ARGUMENT, "%s: %lld rows of %lld classes; rows >= 0 and classes >= 1 are needed",
                kd_operation, static_cast<long long>(a.rows), static_cast<long long>(a.classes));
  }
  if (!(a.temperature >= 1e-30 && a.temperature <= 1e30)) {
    return fail(ESP_INVALID_ARGUMENT, "%s: temperature %g; a number in [1e-30, 1e30] is needed", kd_operation,
                a.temperature);
  }
  if (!(a.alpha >= 0 && a.alpha <= 1)) {
    return fail(ESP_INVALID_ARGUMENT, "%s: alpha %g; a number in [0, 1] is needed", kd_operation, a.alpha);
  }
  if (!(a.beta >= 0 && std::isfinite(a.beta))) {
    return fail(ESP_INVALID_ARGUMENT, "%s: beta %g; a finite number >= 0 is needed", kd_operation, a.beta);
  }
  if (a.beta > 0 && a.bound.data == nullptr && a.teacher.data == nullptr && a.rows > 0) {
    return fail(ESP_INVALID_ARGUMENT, "%s: beta %g, but neither a bound nor a teacher to take it from",
                kd_operation, a.beta);
  }
  if (a.student.data == nullptr && a.rows > 0)
    return fail(ESP_INVALID_ARGUMENT, "%s: student is NULL", kd_operation);
  if (esp_status status = check_logits("student", a.student, a.rows, a.classes)) return status;
  if (esp_status status = check_logits("teacher", a.teacher, a.rows, a.classes)) return status;
  if (esp_status status = check_logits("bound", a.bound, a.rows, a.classes)) return status;
  const esp_logits gradient{a.gradient, a.gradient_stride, a.gradient_dtype};
  if (esp_status status = check_logits("gradient", gradient, a.rows, a.classes)) return status;
  if (a.gradient != nullptr && a.gradient_stride < a.classes && a.rows > 1) {
    return fail(ESP_INVALID_ARGUMENT, "%s: the rows of gradient share memory (stride 0)", kd_operation);
  }
  return ESP_OK;
}

inline KdExponential exponential(double temperature, double bias, bool one_class) {
  constexpr double log2_e = 1.4426950408889634;
  // The softmax of one class is 1 whatever its logit: at scale 0 it is so to the last bit.
  const double scale = one_class ? 0 : log2_e / temperature;
  const float high = static_cast<float>(scale);
  return {high, static_cast<float>(scale - static_cast<double>(high)),
          one_class ? -3.40282347e+38f : static_cast<float>(-0x1p20 / scale), scale, bias};
}

struct KdPowers {
  int power;
  KdExponential soft, hard;
};
inline KdPowers powers_of(const esp_kd_softmax_loss_arguments& a, bool labels_used) {
  const double t = a.temperature;
  const bool one_class = a.classes == 1, teacher_used = a.teacher.data != nullptr;
  KdPowers powers;
  // A power multiplies the error of what it is of: only where the soft part's own tolerance covers that.
  const bool shared = a.alpha <= 0.5;
  powers.power = !teacher_used || !labels_used || t == 1 ? 1
                 : t == 2 && shared                      ? 2
                 : t == 4 && shared                      ? 4
                                                         : 0;
  // A fourth power of a bias must leave room for coefficients that undo it.
  powers.soft = exponential(teacher_used ? t : 1, powers.power == 4 ? 20 : 24, one_class);
  powers.hard = exponential(1, powers.power == 0 ? 24 : powers.power * powers.soft.bias, one_class);
  return powers;
}

}  // namespace esp
