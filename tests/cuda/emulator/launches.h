// Kernels: whether they can be launched so, and how they run.
#pragma once
#include <cstddef>
#include <vector>

#include "fibers.h"

namespace emulator {

constexpr size_t shared_limit = 48 * 1024;  // for kernels that did not ask for more

// A block may have all of a multiprocessor's but 1 KiB.
size_t most_shared();
// Why a launch cannot be, or nullptr.
const char* impossible(const void* function, const Shape& shape);
// A kernel, and those behind it that may begin before it has ended.
void run_launches(const std::vector<Launch>& launches);
// No kernel has asked for more shared memory.
void forget_allowed();

}  // namespace emulator
