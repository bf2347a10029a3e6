// Failures across the C ABI: a status, and one sentence kept for the calling thread.
#pragma once
#include "espalier/common.h"

namespace esp {

// Records the message and returns the status, so that `return fail(...)` reads as one step.
esp_status fail(esp_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));
const char* last_failure();

}  // namespace esp
