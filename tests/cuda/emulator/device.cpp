// The device, and what has gone wrong with it.
#include <cstdio>

#include "emulator.h"
#include "fibers.h"
#include "runtime.h"

namespace emulator {

Options options;
std::recursive_mutex calls;
cudaError_t last_error = cudaSuccess;

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
cudaError_t usable() {
  return note(failed ? cudaErrorLaunchFailure : cudaSuccess);
}

const char* failure() {
  return report;
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaGetLastError() {
  const Alone alone;
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return failed ? cudaErrorLaunchFailure : error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? report : "emulated error";
}
const char* cudaGetErrorName(cudaError_t) {
  return "emulated";
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  const Alone alone;
  return *version = 13000, cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  const Alone alone;
  return *version = options.driver, cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  const Alone alone;
  return *count = 1, cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int device) {
  const Alone alone;
  std::snprintf(id, static_cast<size_t>(bytes), "0000:0E:00.0");
  return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
  const Alone alone;
  return *device = 0, cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const Alone alone;
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? options.major
           : attribute == cudaDevAttrMultiProcessorCount    ? options.multiprocessors
           : attribute == cudaDevAttrComputeCapabilityMinor ? options.minor
                                                            : options.shared_per_multiprocessor;
  return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaSetDevice(int device) {
  const Alone alone;
  return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const Alone alone;
  if (device != 0) return note(cudaErrorInvalidDevice);
  *properties = {"emulated on the CPU", size_t{1} << 34, 9, 0, 4};
  return cudaSuccess;
}
