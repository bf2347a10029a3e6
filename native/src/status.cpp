#include "status.h"

const char* esp_last_error(void) {
  return esp::last_failure();
}
