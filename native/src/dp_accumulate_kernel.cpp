// dp_accumulate: the addition, see add_scaled.h. Bytes: 8 read, 4 written an element, after the 4 that the
// norm reads.
#include "dp_accumulate_kernel.h"

#include "add_scaled.h"

namespace esp {
extern const DpAccumulateKernels ESP_VARIANT(dp_accumulate);
const DpAccumulateKernels ESP_VARIANT(dp_accumulate) = {add_scaled};
}  // namespace esp
