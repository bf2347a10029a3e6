#include "espalier/device.h"

#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>
#include <cstring>

#include "device_limits.h"
#include "kernel.cuh"
#include "nvml.h"
#include "status.h"

using esp::check;
using esp::fail;

namespace {

constexpr int oldest = 75;  // compute capability, of the kernels' PTX
constexpr int early_in_graphs = 12030;  // the CUDA whose drivers take kernels that begin early into graphs

// cudaErrorContained and cudaErrorTensorMemoryLeak, which CUDA 12 has no names for before its last releases.
constexpr auto contained = static_cast<cudaError_t>(226);
constexpr auto tensor_memory_leak = static_cast<cudaError_t>(721);

// Errors after which nothing in this process can use the device again.
bool is_lost(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorECCUncorrectable:
    case cudaErrorAssert:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorExternalDevice:
    case contained:
    case tensor_memory_leak:
      return true;
    default:
      return false;
  }
}

// The device is there, and this process or machine cannot use it as it is.
bool is_unusable(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return true;
    default:
      return false;
  }
}

// What usually helps; "" where CUDA's own words say it.
const char* advice(cudaError_t error) {
  switch (error) {
    case cudaErrorDevicesUnavailable:
      return "; another process may have it for itself (nvidia-smi -q -d COMPUTE)";
    case cudaErrorSystemNotReady:
      return "; machines with NVSwitch need the service nvidia-fabricmanager";
    case cudaErrorSystemDriverMismatch:
      return "; after an update of the driver the machine must be restarted";
    case cudaErrorCompatNotSupportedOnDevice:
      return "; the libcuda.so.1 of a cuda-compat package was found first, and this GPU cannot use it";
    default:
      return "";
  }
}

esp_status check_bytes(int64_t bytes) {
  return bytes < 0 ? fail(ESP_INVALID_ARGUMENT, "%lld bytes", static_cast<long long>(bytes)) : ESP_OK;
}

// What the kernels that run on a device were compiled for, as 10 * major + minor: 75 where the driver compiles the PTX. Asked
// once a device, because it takes longer than a launch may.
__global__ void any_kernel() {}
cudaError_t compiled_for(int device, int* architecture) {
  static std::atomic<int> known[64];
  const bool remembers = device < 64;
  *architecture = remembers ? known[device].load(std::memory_order_relaxed) : 0;
  if (*architecture != 0) return cudaSuccess;
  cudaFuncAttributes attributes;
  if (cudaError_t error = cudaFuncGetAttributes(&attributes, any_kernel)) return error;
  *architecture = attributes.ptxVersion;
  if (remembers) known[device].store(attributes.ptxVersion, std::memory_order_relaxed);
  return cudaSuccess;
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

namespace esp {

esp_status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return ESP_OK;
  cudaGetLastError();  // a launch or copy that follows must not find this error again
  const esp_status status = is_lost(error)                                ? ESP_DEVICE_LOST
                            : error == cudaErrorMemoryAllocation          ? ESP_OUT_OF_MEMORY
                            : is_unusable(error)                          ? ESP_UNSUPPORTED
                            : error == cudaErrorInvalidValue ||
                                    error == cudaErrorInvalidDevice       ? ESP_INVALID_ARGUMENT
                                                                          : ESP_DEVICE_ERROR;
  return fail(status, "%s: %s (%s)%s", what, cudaGetErrorString(error), cudaGetErrorName(error), advice(error));
}

esp_status device_limits(DeviceLimits* limits) {
  int device = 0, multiprocessors = 0, shared = 0, major = 0, compiled = 0, driver = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = compiled_for(device, &compiled);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
  // Kernels compiled for less wait for nothing. 12.0 has clusters of one block only.
  const bool waits = major >= 9 && compiled >= 90;
  *limits = {shared, waits && major <= 10, waits && driver >= early_in_graphs, multiprocessors};
  return check(error, "CUDA device's limits");
}

}  // namespace esp

esp_status esp_cuda_versions(int32_t* runtime, int32_t* driver) {
  if (esp_status status = check(cudaRuntimeGetVersion(runtime), "CUDA runtime version")) return status;
  return check(cudaDriverGetVersion(driver), "CUDA driver version");
}

esp_status esp_cuda_device_count(int32_t* count) {
  int32_t runtime = 0, driver = 0;
  if (esp_status status = esp_cuda_versions(&runtime, &driver)) return status;
  if (driver == 0) return fail(ESP_UNSUPPORTED, "no NVIDIA driver is installed");
  if (driver / 1000 < runtime / 1000) {
    return fail(ESP_UNSUPPORTED,
                "the NVIDIA driver supports CUDA %d.%d; CUDA %d needs driver %d or newer, or, on GPUs of data centres, the package "
                "cuda-compat-%d-%d with its folder in LD_LIBRARY_PATH%s",
                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime >= 13000 ? 580 : 525, runtime / 1000, runtime % 1000 / 10,
                runtime >= 13000 && driver >= 12000 ? "; a build by the nvcc of CUDA 12 needs neither" : "");
  }
  int32_t found = 0;
  if (esp_status status = check(cudaGetDeviceCount(&found), "CUDA devices")) return status;
  // Older ones run none of the kernels. CUDA counts the fastest first: what follows one is not counted either.
  for (*count = 0; *count < found; ++*count) {
    int major = 0, minor = 0;
    cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, *count);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, *count);
    if (esp_status status = check(error, "compute capability of a CUDA device")) return status;
    if (major * 10 + minor >= oldest) continue;
    if (*count > 0) break;
    return fail(ESP_UNSUPPORTED, "the GPU has compute capability %d.%d; %d.%d or newer is needed", major, minor, oldest / 10,
                oldest % 10);
  }
  return ESP_OK;
}

esp_status esp_cuda_device_info(int32_t device, esp_cuda_device* info) {
  cudaDeviceProp properties;
  if (esp_status status = check(cudaGetDeviceProperties(&properties, device), "CUDA device properties")) return status;
  std::memset(info, 0, sizeof *info);
  std::snprintf(info->name, sizeof info->name, "%s", properties.name);
  info->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  info->major = properties.major;
  info->minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  return ESP_OK;
}

esp_status esp_cuda_device_condition(int32_t device, esp_cuda_condition* condition) {
  char bus_id[32];
  if (esp_status status = check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, device), "CUDA device's place")) return status;
  return esp::nvml_condition(bus_id, condition);
}

esp_status esp_cuda_device_set(int32_t device) { return check(cudaSetDevice(device), "choosing the CUDA device"); }

esp_status esp_cuda_allocate(int64_t bytes, void** memory) {
  *memory = nullptr;
  if (esp_status status = check_bytes(bytes)) return status;
  if (bytes == 0) return ESP_OK;
  return check(cudaMalloc(memory, static_cast<size_t>(bytes)), "allocating device memory");
}
esp_status esp_cuda_release(void* memory) { return check(cudaFree(memory), "releasing device memory"); }
esp_status esp_cuda_host_allocate(int64_t bytes, void** memory) {
  *memory = nullptr;
  if (esp_status status = check_bytes(bytes)) return status;
  if (bytes == 0) return ESP_OK;
  return check(cudaMallocHost(memory, static_cast<size_t>(bytes)), "allocating page-locked memory");
}
esp_status esp_cuda_host_release(void* memory) { return check(cudaFreeHost(memory), "releasing page-locked memory"); }
esp_status esp_cuda_copy(void* destination, const void* source, int64_t bytes, void* stream) {
  if (esp_status status = check_bytes(bytes)) return status;
  if (bytes == 0) return ESP_OK;
  return check(cudaMemcpyAsync(destination, source, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_of(stream)),
               "copying");
}
esp_status esp_cuda_fill_zero(void* memory, int64_t bytes, void* stream) {
  if (esp_status status = check_bytes(bytes)) return status;
  if (bytes == 0) return ESP_OK;
  return check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream_of(stream)), "filling with zeros");
}

esp_status esp_cuda_stream_create(void** stream) {
  cudaStream_t created = nullptr;
  const esp_status status = check(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "creating a stream");
  *stream = created;
  return status;
}
esp_status esp_cuda_stream_destroy(void* stream) { return check(cudaStreamDestroy(stream_of(stream)), "closing a stream"); }
esp_status esp_cuda_stream_synchronize(void* stream) {
  return check(cudaStreamSynchronize(stream_of(stream)), "waiting for a stream");
}
esp_status esp_cuda_stream_wait(void* stream, void* event) {
  return check(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0), "making a stream wait for an event");
}

esp_status esp_cuda_event_create(void** event) {
  cudaEvent_t created = nullptr;
  const esp_status status = check(cudaEventCreate(&created), "creating an event");
  *event = created;
  return status;
}
esp_status esp_cuda_event_destroy(void* event) { return check(cudaEventDestroy(event_of(event)), "closing an event"); }
esp_status esp_cuda_event_record(void* event, void* stream) {
  return check(cudaEventRecord(event_of(event), stream_of(stream)), "recording an event");
}
esp_status esp_cuda_event_synchronize(void* event) {
  return check(cudaEventSynchronize(event_of(event)), "waiting for an event");
}
esp_status esp_cuda_event_elapsed(void* start, void* end, float* milliseconds) {
  return check(cudaEventElapsedTime(milliseconds, event_of(start), event_of(end)), "time between events");
}
