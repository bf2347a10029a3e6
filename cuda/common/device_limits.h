// What planning asks of the current device.
#pragma once
#include <cstdint>

#include "espalier/common.h"

namespace esp {

struct DeviceLimits {
  int64_t shared_per_multiprocessor;  // bytes, of which each block costs 1 KiB of its own
  bool clusters;                      // blocks that run together and see each other's shared memory
  bool early_kernels = false;         // kernels that begin before the one before has ended
  int32_t multiprocessors = 1;
};
esp_status device_limits(DeviceLimits* limits);

}  // namespace esp
