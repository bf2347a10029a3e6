// Stands for the driver's libnvidia-ml.so.1 beside the emulator: one device, which does not tell its power.
#include <cstdio>
#include <cstring>

namespace {
constexpr int not_supported = 3, not_found = 6;
char device;
}  // namespace

extern "C" {
int nvmlInit_v2() {
  return 0;
}
const char* nvmlErrorString(int error) {
  return error == not_found ? "Not Found" : "Not Supported";
}
int nvmlSystemGetDriverVersion(char* version, unsigned length) {
  std::snprintf(version, length, "580.1");
  return 0;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** handle) {
  *handle = &device;
  return std::strcmp(id, "0000:0E:00.0") == 0 ? 0 : not_found;
}
int nvmlDeviceGetClockInfo(void*, unsigned type, unsigned* megahertz) {
  *megahertz = type == 1 ? 1980 : 2619;
  return type == 1 || type == 2 ? 0 : not_supported;
}
int nvmlDeviceGetTemperature(void*, unsigned, unsigned* celsius) {
  *celsius = 41;
  return 0;
}
int nvmlDeviceGetPowerUsage(void*, unsigned*) {
  return not_supported;
}
int nvmlDeviceGetMemoryInfo(void*, unsigned long long* total_free_used) {
  total_free_used[0] = 16ull << 30;
  total_free_used[1] = 12ull << 30;
  total_free_used[2] = 4ull << 30;
  return 0;
}
}
