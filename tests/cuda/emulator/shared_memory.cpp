// The memory that the threads of a block share, and those of a cluster see.
#include <cstdlib>

#include "fibers.h"
#include "launches.h"
#include "memory.h"
#include "sanitizers.h"

namespace emulator {

void free_shared(Block* block) {
  std::free(block->dynamic);
  block->dynamic = nullptr;
  for (int i = 0; i < block->shared_arrays; i++) std::free(block->shared[i].memory);
  block->shared_arrays = 0;
}

namespace {

void* shared_memory_of(Block* block, const void* place, size_t bytes) {
  for (int i = 0; i < block->shared_arrays; i++) {
    if (block->shared[i].place == place) return block->shared[i].memory;
  }
  if (block->shared_arrays == max_shared_arrays) fail("over %d shared arrays", max_shared_arrays);
  block->shared_bytes += bytes;
  const size_t most = block->grid->launch->most_shared;
  if (block->shared_bytes - block->dynamic_bytes > shared_limit || block->shared_bytes > most)
    fail("%zu bytes of shared memory, over 48 KiB or what the device has", block->shared_bytes);
  ignore_accesses(true);
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes) != 0)
    std::abort();  // of exactly that size: red zones follow at once
  fill_fresh(memory, bytes);
  ignore_accesses(false);
  block->shared[block->shared_arrays++] = {place, memory, bytes};
  return memory;
}

}  // namespace

void* shared_memory(const void* place, size_t bytes) {
  return shared_memory_of(self->of, place, bytes);
}

void* dynamic_shared_memory() {
  if (self->of->dynamic == nullptr) fail("the launch gave no dynamic shared memory");
  return self->of->dynamic;
}

void* cluster_shared(void* own, int rank) {
  Block* const block = self->of;
  const int size = block->grid->launch->shape.cluster;
  Block* const other = blocks + block->slot / size * size + rank;
  if (rank < 0 || rank >= size) fail("block %d of a cluster of %d", rank, size);
  if (other->alive == 0) fail("shared memory of block %d of the cluster, which has ended", rank);
  const auto offset = [&](const void* memory) {
    return static_cast<size_t>(static_cast<char*>(own) - static_cast<const char*>(memory));
  };
  if (offset(block->dynamic) < block->dynamic_bytes)
    return static_cast<char*>(other->dynamic) + offset(block->dynamic);
  for (int i = 0; i < block->shared_arrays; i++) {
    const auto& array = block->shared[i];
    if (offset(array.memory) < array.bytes)
      return static_cast<char*>(shared_memory_of(other, array.place, array.bytes)) + offset(array.memory);
  }
  fail("%p is not in shared memory", own);
}

}  // namespace emulator
