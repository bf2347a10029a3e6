#include "cpu_features.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "status.h"

namespace {

const char* const names[] = {"scalar", "avx2", "avx512"};

// __builtin_cpu_supports asks cpuid and XCR0: an instruction set that the system does not save is not reported.
int32_t detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return ESP_ISA_AVX512;
  }
  if (avx2) return ESP_ISA_AVX2;
#endif
  return ESP_ISA_SCALAR;
}

constexpr int32_t not_chosen = -1;
std::atomic<int32_t> chosen{not_chosen};

}  // namespace

int32_t esp_isa_best(void) {
  static const int32_t best = detect();
  return best;
}

esp_status esp_isa_current(int32_t* isa) {
  const int32_t set = chosen.load(std::memory_order_relaxed);
  if (set != not_chosen) {
    *isa = set;
    return ESP_OK;
  }
  const char* wanted = std::getenv("ESPALIER_ISA");
  if (wanted == nullptr || *wanted == 0) return esp_isa_set(*isa = esp_isa_best());
  for (int32_t i = 0; i < 3; i++) {
    if (std::strcmp(wanted, names[i]) == 0) return esp_isa_set(*isa = i);
  }
  return esp::fail(ESP_UNSUPPORTED, "ESPALIER_ISA is \"%.32s\"; it takes scalar, avx2 or avx512", wanted);
}

esp_status esp_isa_set(int32_t isa) {
  if (isa < ESP_ISA_SCALAR || isa > ESP_ISA_AVX512) {
    return esp::fail(ESP_INVALID_ARGUMENT, "instruction set %d is unknown; 0 (scalar) to 2 (avx512) are", isa);
  }
  if (isa > esp_isa_best()) {
    return esp::fail(ESP_UNSUPPORTED, "this processor cannot run %s; the best it can is %s", names[isa],
                     names[esp_isa_best()]);
  }
  chosen.store(isa, std::memory_order_relaxed);
  return ESP_OK;
}

const char* esp_isa_name(int32_t isa) { return isa < 0 || isa > 2 ? nullptr : names[isa]; }
