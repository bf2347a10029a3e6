// In place of the CUDA runtime, for objects that nvcc compiled: what they call beside the calls that the emulator has under
// the same names. EMULATOR_PTX is a pattern of the files with their PTX, such as DIRECTORY/*.compute_90.ptx.
//
// Linked with --wrap=cudaGetDeviceProperties: the emulator's struct of that name is its own.
#include <cuda_runtime_api.h>
#include <glob.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "launch.h"
#include "ptx.h"

namespace {

[[noreturn]] void stop(const char* what, const char* name) {
  std::fprintf(stderr, "ptx: %s: %s\n", what, name);
  std::exit(2);
}

// Names of kernels by the functions that stand for them on the host.
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> all;  // used before main
  return all;
}

const ptx::Kernel& kernel_of(const void* function) {
  static ptx::Program program([] {
    const char* const pattern = std::getenv("EMULATOR_PTX");
    if (pattern == nullptr) stop("no pattern of files", "EMULATOR_PTX");
    glob_t found;
    if (glob(pattern, 0, nullptr, &found) != 0) stop("no such files", pattern);
    std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    globfree(&found);
    return paths;
  }());
  static std::map<const void*, const ptx::Kernel*> kernels;
  const ptx::Kernel*& kernel = kernels[function];
  if (kernel == nullptr) {
    const auto name = names().find(function);
    if (name == names().end()) stop("no kernel", "a launch of what was not registered");
    kernel = program.find(name->second);
    if (kernel == nullptr) stop("in no file", name->second.c_str());
  }
  return *kernel;
}

struct Arguments {
  const ptx::Kernel& kernel;
  std::vector<char> bytes;
};

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  names()[host] = name;
}
// For launches with <<<>>>, of which there are none.
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { stop("not emulated", "__cudaGetKernel"); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  stop("not emulated", "__cudaLaunchKernel");
}
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { stop("not emulated", "__cudaPopCallConfiguration"); }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** given) {
  const ptx::Kernel& kernel = kernel_of(function);
  emulator::Shape shape = {config->gridDim, config->blockDim, config->dynamicSmemBytes, 1};
  for (unsigned i = 0; i < config->numAttrs; i++) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      shape.cluster = static_cast<int>(attribute.val.clusterDim.x);
    } else if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      shape.follows = attribute.val.programmaticStreamSerializationAllowed != 0;
    } else {
      return cudaErrorInvalidValue;
    }
  }
  auto* const arguments = new Arguments{kernel, std::vector<char>(kernel.parameter_bytes)};
  for (size_t i = 0; i < kernel.parameters.size(); i++)
    std::memcpy(arguments->bytes.data() + kernel.parameters[i].offset, given[i], kernel.parameters[i].bytes);
  return emulator::queue_launch(
      function,
      [](void* p) { ptx::run(static_cast<Arguments*>(p)->kernel, static_cast<Arguments*>(p)->bytes.data()); },
      arguments, [](void* p) { delete static_cast<Arguments*>(p); }, shape, config->stream);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  return emulator::allow_dynamic_shared(function, static_cast<size_t>(value));
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  *attributes = {};
  attributes->ptxVersion = kernel_of(function).target;
  return cudaSuccess;
}

cudaError_t __wrap_cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated on the CPU");
  properties->totalGlobalMem = size_t{1} << 34;
  properties->major = 9;
  properties->multiProcessorCount = 4;
  return cudaSuccess;
}

}  // extern "C"
