// Memory of the device and of its blocks, and what is in it before anything is written.
#pragma once
#include <cstddef>

namespace emulator {

struct Block;

// NaN, or rubbish without a zero byte.
void fill_fresh(void* memory, size_t bytes);
// Device memory is for kernels and copies alone, which open it while they run.
void open_all(bool accessible);
// What a block shared.
void free_shared(Block* block);

}  // namespace emulator
