// The library's own last failure: the CPU library keeps another.
#include "status.h"

#include <cstdarg>
#include <cstdio>

#include "espalier/device.h"

namespace {
thread_local char last_error[512] = "";
}

namespace esp {

esp_status fail(esp_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace esp

const char* esp_cuda_last_error(void) {
  return last_error;
}
