#include "nvml.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "status.h"

namespace {

// Of NVML's ABI, which is stable within these names.
struct Memory {
  unsigned long long total, free, used;
};
constexpr unsigned clock_sm = 1, clock_memory = 2, sensor_gpu = 0;

struct Library {
  int (*init)();
  const char* (*error_string)(int);
  int (*driver_version)(char*, unsigned);
  int (*by_bus_id)(const char*, void**);
  int (*clock)(void*, unsigned, unsigned*);
  int (*temperature)(void*, unsigned, unsigned*);
  int (*power)(void*, unsigned*);
  int (*memory)(void*, Memory*);
  char reason[256];  // why it cannot be used; "" where it can

  Library() {
    std::memset(this, 0, sizeof *this);
    void* const handle = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      explain("dlopen", dlerror());
      return;
    }
    find(handle, "nvmlInit_v2", &init);
    find(handle, "nvmlErrorString", &error_string);
    find(handle, "nvmlSystemGetDriverVersion", &driver_version);
    find(handle, "nvmlDeviceGetHandleByPciBusId_v2", &by_bus_id);
    find(handle, "nvmlDeviceGetClockInfo", &clock);
    find(handle, "nvmlDeviceGetTemperature", &temperature);
    find(handle, "nvmlDeviceGetPowerUsage", &power);
    find(handle, "nvmlDeviceGetMemoryInfo", &memory);
    if (reason[0] != 0) return;
    if (const int error = init()) explain("nvmlInit_v2", error_string(error));
  }

 private:
  void explain(const char* what, const char* why) {
    std::snprintf(reason, sizeof reason, "%s: %s", what, why);
  }
  template <class Function>
  void find(void* handle, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(handle, name));
    if (*function == nullptr) explain("libnvidia-ml.so.1 lacks", name);
  }
};

int32_t known(int error, unsigned value) {
  return error == 0 ? static_cast<int32_t>(value) : -1;
}

}  // namespace

esp_status esp::nvml_condition(const char* bus_id, esp_cuda_condition* condition) {
  static const Library nvml;  // stays open: closing costs as much as opening
  if (nvml.reason[0] != 0) return fail(ESP_UNSUPPORTED, "NVML: %s", nvml.reason);
  void* device = nullptr;
  if (int error = nvml.by_bus_id(bus_id, &device))
    return fail(ESP_UNSUPPORTED, "NVML: %s: %s", bus_id, nvml.error_string(error));
  *condition = {};
  if (nvml.driver_version(condition->driver, sizeof condition->driver) != 0) condition->driver[0] = 0;
  unsigned value = 0;
  int error = nvml.clock(device, clock_sm, &value);
  condition->sm_megahertz = known(error, value);
  error = nvml.clock(device, clock_memory, &value);
  condition->memory_megahertz = known(error, value);
  error = nvml.temperature(device, sensor_gpu, &value);
  condition->celsius = known(error, value);
  error = nvml.power(device, &value);
  condition->milliwatts = known(error, value);
  Memory memory = {};
  error = nvml.memory(device, &memory);
  condition->memory_used_bytes = error == 0 ? static_cast<int64_t>(memory.used) : -1;
  condition->memory_bytes = error == 0 ? static_cast<int64_t>(memory.total) : -1;
  return ESP_OK;
}
