// What begins the table of each operation of fake_quantize.
#pragma once
#include <cstdint>

#include "espalier/fake_quantize.h"
#include "part_lists.h"

namespace esp {

// Entries of the tensors follow, then the lists of parts.
struct QuantizeHead {
  esp_quantizer quantizer;
  int32_t reserved[6];
};
static_assert(sizeof(QuantizeHead) % 16 == 0, "entries follow");

}  // namespace esp
