#include "status.h"

#include "espalier/device.h"

const char* esp_cuda_last_error(void) {
  return esp::last_failure();
}
