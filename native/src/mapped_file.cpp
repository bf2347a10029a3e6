#include "espalier/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "status.h"

esp_status esp_file_map(const uint8_t* path, int64_t bytes, void** memory) {
  if (path == nullptr || memory == nullptr || bytes <= 0) {
    return esp::fail(ESP_INVALID_ARGUMENT, "a file of at least one byte and a place for its address are needed");
  }
  const char* name = reinterpret_cast<const char*>(path);
  const int file = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return esp::fail(ESP_INVALID_ARGUMENT, "cannot open %s: %s", name, strerror(errno));
  struct stat status;
  if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size != bytes) {
    close(file);
    return esp::fail(ESP_INVALID_ARGUMENT, "%s is not a regular file of %lld bytes any more", name,
                     static_cast<long long>(bytes));
  }
  void* mapped = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, file, 0);
  const int reason = errno;
  close(file);
  if (mapped == MAP_FAILED) {
    return esp::fail(ESP_INVALID_ARGUMENT, "cannot map %s: %s", name, strerror(reason));
  }
  *memory = mapped;
  return ESP_OK;
}

void esp_file_unmap(void* memory, int64_t bytes) {
  if (memory != nullptr) munmap(memory, static_cast<size_t>(bytes));
}
