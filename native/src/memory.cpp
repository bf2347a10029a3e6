#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "espalier/common.h"
#include "status.h"

namespace {
constexpr int64_t huge_page = int64_t{2} << 20;
constexpr int64_t huge_from = int64_t{4} << 20;
int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Maps one page more than needed and gives back what lies outside the aligned part.
void* map_huge(int64_t bytes) {
  char* mapped = static_cast<char*>(mmap(nullptr, static_cast<size_t>(bytes + huge_page), PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (mapped == MAP_FAILED) return nullptr;
  const int64_t address = reinterpret_cast<intptr_t>(mapped);
  const int64_t before = round_up(address, huge_page) - address;
  if (before > 0) munmap(mapped, static_cast<size_t>(before));
  if (before < huge_page) munmap(mapped + before + bytes, static_cast<size_t>(huge_page - before));
  madvise(mapped + before, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return mapped + before;
}
}  // namespace

esp_status esp_allocate(int64_t bytes, void** memory) {
  if (memory == nullptr || bytes < 0 || bytes > INT64_MAX / 2) {
    return esp::fail(ESP_INVALID_ARGUMENT, "cannot allocate %lld bytes", static_cast<long long>(bytes));
  }
  if (bytes < huge_from) {
    const size_t rounded = static_cast<size_t>(round_up(bytes == 0 ? 1 : bytes, 64));
    *memory = std::aligned_alloc(64, rounded);
    if (*memory != nullptr) std::memset(*memory, 0, rounded);
  } else {
    *memory = map_huge(round_up(bytes, huge_page));
  }
  if (*memory == nullptr) {
    return esp::fail(ESP_OUT_OF_MEMORY, "out of memory: %lld bytes asked for", static_cast<long long>(bytes));
  }
  return ESP_OK;
}

void esp_release(void* memory, int64_t bytes) {
  if (memory == nullptr) return;
  if (bytes < huge_from) {
    std::free(memory);
  } else {
    munmap(memory, static_cast<size_t>(round_up(bytes, huge_page)));
  }
}
