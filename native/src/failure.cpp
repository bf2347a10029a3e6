// In both libraries, each of which keeps its own last failure.
#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace {
thread_local char message[512] = "";
}

namespace esp {

esp_status fail(esp_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}

const char* last_failure() {
  return message;
}

}  // namespace esp
