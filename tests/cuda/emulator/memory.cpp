// Device memory, pinned memory, and what copies and fills them.
#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include <sys/mman.h>

#include "emulator.h"
#include "runtime.h"
#include "sanitizers.h"
#include "schedule.h"

namespace emulator {
namespace {

struct Allocation {
  char* memory;
  size_t bytes;
};
std::vector<Allocation> allocations;
size_t allocated = 0;
int64_t allocations_until_failure = 0;

// Outside kernels and copies the address sanitizer, or the system, stops whoever touches device memory.
void open(const Allocation& a, bool accessible) {
#if defined(EMULATOR_ASAN)
  accessible ? __asan_unpoison_memory_region(a.memory, a.bytes)
             : __asan_poison_memory_region(a.memory, a.bytes);
#elif defined(EMULATOR_PROTECT)
  mprotect(a.memory, a.bytes, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
#else
  (void)a, (void)accessible;
#endif
}
void* allocate(size_t bytes) {
#if defined(EMULATOR_PROTECT)
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
#else
  void* memory = nullptr;
  return posix_memalign(&memory, 256, bytes) == 0 ? memory : nullptr;
#endif
}
void give_back(const Allocation& a) {
#if defined(EMULATOR_PROTECT)
  munmap(a.memory, a.bytes);
#else
  std::free(a.memory);
#endif
}

}  // namespace

void open_all(bool accessible) {
  for (const Allocation& a : allocations) open(a, accessible);
}

void fill_fresh(void* memory, size_t bytes) {
  const uint64_t pattern = random_below(2) != 0 ? ~uint64_t{0} : random64() | 0x0101010101010101ull;
  unsigned char* const byte = static_cast<unsigned char*>(memory);
  size_t i = 0;
  for (; i + sizeof pattern <= bytes; i += sizeof pattern) std::memcpy(byte + i, &pattern, sizeof pattern);
  for (; i < bytes; i++) byte[i] = static_cast<unsigned char>(pattern >> (i % 8 * 8));
}

void fail_allocation(int64_t n) {
  allocations_until_failure = n;
}
size_t allocated_bytes() {
  return allocated;
}

}  // namespace emulator

using namespace emulator;

namespace {

void with_device_memory(const std::function<void()>& work) {
  open_all(true);
  work();
  open_all(false);
}

}  // namespace

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const Alone alone;
  *memory = nullptr;
  if (cudaError_t error = usable()) return error;
  if (capturing()) return note(cudaErrorStreamCaptureUnsupported);
  if (allocations_until_failure > 0 && --allocations_until_failure == 0)
    return note(cudaErrorMemoryAllocation);
  if (bytes == 0) return cudaSuccess;
  if ((*memory = allocate(bytes)) == nullptr) return note(cudaErrorMemoryAllocation);
  fill_fresh(*memory, bytes);
  allocations.push_back({static_cast<char*>(*memory), bytes});
  allocated += bytes;
  open(allocations.back(), false);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const Alone alone;
  if (memory == nullptr) return usable();
  if (capturing()) return note(cudaErrorStreamCaptureUnsupported);
  wait_for_all();
  for (size_t i = 0; i < allocations.size(); i++) {
    if (allocations[i].memory != memory) continue;
    open(allocations[i], true);
    allocated -= allocations[i].bytes;
    give_back(allocations[i]);
    allocations.erase(allocations.begin() + static_cast<int64_t>(i));
    return usable();
  }
  return note(cudaErrorInvalidValue);
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  const Alone alone;
  *memory = bytes == 0 ? nullptr : std::malloc(bytes);
  return usable();
}
cudaError_t cudaFreeHost(void* memory) {
  const Alone alone;
  std::free(memory);
  return usable();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const Alone alone;
  // Pageable memory too is read and written when it comes to it: where the device reaches it, CUDA stages nothing.
  return enqueue(stream, [=] {
    with_device_memory([=] {
      if (bytes > 0) std::memcpy(to, from, bytes);
    });
  });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const Alone alone;
  return enqueue(stream, [=] {
    with_device_memory([=] {
      if (bytes > 0) std::memset(to, value, bytes);
    });
  });
}
