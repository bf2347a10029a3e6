// Stands for the driver's libcuda.so.1 as far as the CUDA runtime asks it when it starts: DRIVER_VERSION (13000) is the CUDA
// that it supports, DRIVER_INIT (0) what cuInit returns. Every other call fails.
#include <cstdlib>
#include <cstring>

namespace {

int from_environment(const char* name, int otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}
int unknown() {
  return 999;
}

}  // namespace

extern "C" {
int cuInit(unsigned) {
  return from_environment("DRIVER_INIT", 0);
}
int cuDriverGetVersion(int* version) {
  *version = from_environment("DRIVER_VERSION", 13000);
  return 0;
}
int cuGetProcAddress_v2(const char* symbol, void** function, int, unsigned long long, int* status) {
  if (status != nullptr) *status = 0;
  *function = std::strcmp(symbol, "cuInit") == 0               ? reinterpret_cast<void*>(&cuInit)
              : std::strcmp(symbol, "cuDriverGetVersion") == 0 ? reinterpret_cast<void*>(&cuDriverGetVersion)
              : std::strcmp(symbol, "cuGetProcAddress") == 0   ? reinterpret_cast<void*>(&cuGetProcAddress_v2)
                                                               : reinterpret_cast<void*>(&unknown);
  return 0;
}
}
