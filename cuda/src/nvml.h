// The driver's NVML, opened when it is first asked for: nothing links to it.
#pragma once
#include "espalier/device.h"

namespace esp {

// bus_id: as cudaDeviceGetPCIBusId writes it.
esp_status nvml_condition(const char* bus_id, esp_cuda_condition* condition);

}  // namespace esp
