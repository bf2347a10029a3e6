// The part of CUDA that the project's sources use, for the host compiler; see emulator.h.
#pragma once
#if defined(__CUDACC__)
#error "for the host compiler: nvcc has its own cuda_runtime.h"
#endif
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// ---- the runtime API

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorDevicesUnavailable = 46,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorNvlinkUncorrectable = 220,
  cudaErrorContained = 226,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorContextIsDestroyed = 709,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorTensorMemoryLeak = 721,
  cudaErrorSystemNotReady = 802,
  cudaErrorSystemDriverMismatch = 803,
  cudaErrorCompatNotSupportedOnDevice = 804,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorExternalDevice = 911,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3, cudaMemcpyDefault = 4 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeThreadLocal = 1, cudaStreamCaptureModeRelaxed = 2 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
constexpr unsigned cudaStreamNonBlocking = 1;
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
typedef struct CUgraph_st* cudaGraph_t;
typedef struct CUgraphExec_st* cudaGraphExec_t;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
};
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor, multiProcessorCount;
};

extern "C" {
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);
const char* cudaGetErrorName(cudaError_t);
cudaError_t cudaRuntimeGetVersion(int*);
cudaError_t cudaDriverGetVersion(int*);
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int);
cudaError_t cudaDeviceGetPCIBusId(char*, int, int);
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaMalloc(void**, size_t);
cudaError_t cudaFree(void*);
cudaError_t cudaMallocHost(void**, size_t);
cudaError_t cudaFreeHost(void*);
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaEventCreate(cudaEvent_t*);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t);
}

#include "launch.h"

// ---- what kernels see

namespace emulator {

struct Thread {
  uint3 thread, block;
  dim3 threads, blocks;
  int lane, warp;
};
extern Thread* current;  // nullptr outside kernels

enum class WarpOp { shuffle, sync, ballot, match };

int barrier(int line, bool counts, bool predicate);
// Between the blocks of a cluster: of all their threads; and where `own`, in this block's shared memory, lies in another's.
void cluster_barrier();
void* cluster_shared(void* own, int rank);
// ex2.approx.ftz with the largest error that it may have.
float exp2_approximate(float x);
// Between a kernel and the one that follows it.
void let_next_begin();
void wait_for_kernel_before();
uint64_t warp_shuffle(unsigned mask, uint64_t value, int source);
uint64_t warp_vote(WarpOp op, unsigned mask, uint64_t value);
void before_atomic(const void* address, size_t size);
void fence();
// The launch has failed and no thread runs again.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Memory of the calling block for this place in the source; the same for all its threads.
void* shared_memory(const void* place, size_t bytes);
void* dynamic_shared_memory();

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const Shape& shape, cudaStream_t stream, A&&... given) {
  static_assert((sizeof(P) + ... + 0) <= 4096, "kernel parameters over 4 KiB");
  static_assert((std::is_trivially_copyable_v<P> && ...), "kernel parameters must be trivially copyable");
  struct Arguments {
    void (*kernel)(P...);
    std::tuple<P...> values;
  };
  return queue_launch(reinterpret_cast<const void*>(kernel),
                      [](void* p) { std::apply(static_cast<Arguments*>(p)->kernel, static_cast<Arguments*>(p)->values); },
                      new Arguments{kernel, std::tuple<P...>(static_cast<P>(given)...)},
                      [](void* p) { delete static_cast<Arguments*>(p); }, shape, stream);
}

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8, "warp operations move up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A read-modify-write as CUDA's are: atomic, and ordering nothing.
template <class T, class Change>
T change(T* address, Change next) {
  before_atomic(address, sizeof(T));
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  Bits* const word = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
  do {
    after = static_cast<Bits>(pack(next(unpack<T>(before))));
  } while (!__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return unpack<T>(before);
}

template <class T>
struct Same {
  using type = T;
};
template <class T>
using Given = typename Same<T>::type;  // not deduced: converts as an argument of CUDA's overloads does

}  // namespace emulator

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int value) {
  return emulator::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(value));
}

// The compiler of the host leaves nothing out.
template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(P...)) {
  attributes->ptxVersion = 120;
  return cudaSuccess;
}

#define threadIdx (::emulator::current->thread)
#define blockIdx (::emulator::current->block)
#define blockDim (::emulator::current->threads)
#define gridDim (::emulator::current->blocks)

#define __syncthreads() ((void)::emulator::barrier(__LINE__, false, false))
#define __syncthreads_count(predicate) ::emulator::barrier(__LINE__, true, (predicate) != 0)
#define __syncthreads_or(predicate) (::emulator::barrier(__LINE__, true, (predicate) != 0) != 0)
#define __syncthreads_and(predicate) (::emulator::barrier(__LINE__, true, (predicate) == 0) == 0)
inline void __syncwarp(unsigned mask = ~0u) { emulator::warp_vote(emulator::WarpOp::sync, mask, 0); }
inline void __threadfence() { emulator::fence(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = emulator::current->lane;
  return emulator::unpack<T>(
      emulator::warp_shuffle(mask, emulator::pack(value), (lane & ~(width - 1)) | (source & (width - 1))));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulator::current->lane, source = lane - static_cast<int>(delta);
  return emulator::unpack<T>(emulator::warp_shuffle(mask, emulator::pack(value), source < (lane & ~(width - 1)) ? lane : source));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulator::current->lane, source = lane + static_cast<int>(delta);
  return emulator::unpack<T>(
      emulator::warp_shuffle(mask, emulator::pack(value), source >= (lane & ~(width - 1)) + width ? lane : source));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = emulator::current->lane, source = lane ^ bits;
  return emulator::unpack<T>(
      emulator::warp_shuffle(mask, emulator::pack(value), source >= (lane & ~(width - 1)) + width ? lane : source));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(emulator::warp_vote(emulator::WarpOp::ballot, mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  return static_cast<unsigned>(emulator::warp_vote(emulator::WarpOp::match, mask, emulator::pack(value)));
}

template <class T>
T atomicAdd(T* address, emulator::Given<T> value) {
  return emulator::change(address, [=](T before) { return static_cast<T>(before + value); });
}
template <class T>
T atomicMin(T* address, emulator::Given<T> value) {
  return emulator::change(address, [=](T before) { return before < value ? before : value; });
}
template <class T>
T atomicMax(T* address, emulator::Given<T> value) {
  return emulator::change(address, [=](T before) { return before > value ? before : value; });
}
template <class T>
T atomicOr(T* address, emulator::Given<T> value) {
  return emulator::change(address, [=](T before) { return before | value; });
}
template <class T>
T atomicExch(T* address, emulator::Given<T> value) {
  return emulator::change(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, emulator::Given<T> expected, emulator::Given<T> value) {
  return emulator::change(address, [=](T before) { return before == expected ? value : before; });
}

inline unsigned __float_as_uint(float value) { return emulator::unpack<unsigned>(emulator::pack(value)); }
inline float __uint_as_float(unsigned value) { return emulator::unpack<float>(emulator::pack(value)); }
inline int __float_as_int(float value) { return emulator::unpack<int>(emulator::pack(value)); }
inline float __int_as_float(int value) { return emulator::unpack<float>(emulator::pack(value)); }
inline long long __double_as_longlong(double value) { return emulator::unpack<long long>(emulator::pack(value)); }
inline double __longlong_as_double(long long value) { return emulator::unpack<double>(emulator::pack(value)); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
