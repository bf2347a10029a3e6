// Which instruction set variant runs.
//
// An operation keeps its kernels in a struct of function pointers, one constant object a variant, named
// <operation>_<isa> and declared by ESP_DECLARE_VARIANTS; select() picks the one in use.
#pragma once
#include "espalier/common.h"

namespace esp {

template <class Kernels>
struct Variants {
  const Kernels* of[3];  // by ESP_ISA_*; nullptr where not built
};

#if defined(__x86_64__)
#define ESP_DECLARE_VARIANTS(Kernels, operation)                                 \
  namespace esp {                                                                \
  extern const Kernels operation##_scalar, operation##_avx2, operation##_avx512; \
  constexpr Variants<Kernels> operation##_variants{                              \
      {&operation##_scalar, &operation##_avx2, &operation##_avx512}};            \
  }
#else
#define ESP_DECLARE_VARIANTS(Kernels, operation)                                            \
  namespace esp {                                                                           \
  extern const Kernels operation##_scalar;                                                  \
  constexpr Variants<Kernels> operation##_variants{{&operation##_scalar, nullptr, nullptr}}; \
  }
#endif

template <class Kernels>
esp_status select(const Variants<Kernels>& variants, const Kernels** kernels) {
  int32_t isa, threads;
  if (esp_status status = esp_isa_current(&isa)) return status;
  if (esp_status status = esp_threads_current(&threads)) return status;  // a wrong setting must not go unseen
  *kernels = variants.of[isa];
  return ESP_OK;
}

}  // namespace esp
