// The order of the sum in gradient_norm, which is part of its result, on every processor and device: 16 lanes in a block, then a
// tree over them; the sums of the blocks of all tensors, in list order, in 256 lanes, then a tree over those.
#pragma once

namespace esp {

constexpr int gradient_norm_block = 8192;  // elements
constexpr int gradient_norm_lanes = 256;

}  // namespace esp
