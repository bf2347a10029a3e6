#pragma once
#include "cpu_features.h"
#include "espalier/bandwidth.h"

namespace esp {

struct BandwidthKernels {
  // n a multiple of 16; `one` is 1; `streaming` asks for non-temporal stores (outputs aligned to 64 bytes).
  void (*traffic)(int32_t kind, float* a, float* b, float* c, float* d, int64_t n, float one,
                  bool streaming);
};

}  // namespace esp

ESP_DECLARE_VARIANTS(BandwidthKernels, bandwidth)
