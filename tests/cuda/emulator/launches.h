// Kernels: whether they can be launched so, and how they run.
#pragma once
#include <cstddef>
#include <vector>

#include "fibers.h"

namespace emulator {

constexpr size_t shared_limit = 48 * 1024;  // of static memory, and of all for kernels that did not ask for dynamic memory

// What a block of a kernel may have, static and dynamic together: all of a multiprocessor's but 1 KiB where it has asked.
size_t most_shared(const void* function);
// Why a launch cannot be, or nullptr.
const char* impossible(const void* function, const Shape& shape);
// A kernel, and those behind it that may begin before it has ended.
void run_launches(const std::vector<Launch>& launches);
// No kernel has asked for more shared memory.
void forget_allowed();

}  // namespace emulator
