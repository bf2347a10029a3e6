// What kernels are written with, and the only header of CUDA that they include: the same source is compiled by nvcc, and by
// the host compiler for the emulator in tests/cuda/emulator. Inline PTX, shared memory and the launch are here and nowhere
// else.
//
// To write the operation `name`:
//   cuda/include/espalier/cuda/name.h   the C ABI: what the device does otherwise than native/include/espalier/name.h
//   cuda/src/name.cpp                   arguments and planning, plain C++ without CUDA: sizes, tables, chunks
//   cuda/kernels/name.h                 what plan and kernels share: the structs of the table, chunk sizes
//   cuda/kernels/name.cu                kernels, then the launcher, which only launches: it neither allocates nor waits, nor
//                                       reads device memory, and may be captured in a graph
//   tests/cuda/name_test.cpp            plain C++ against the C ABI: emulated on every machine, on a GPU where there is one
// and the name in ESP_CUDA_OPERATIONS of cmake/Operations.cmake.
//
// In a kernel
//   ESP_SHARED(float, tile, [256]);     instead of __shared__ float tile[256]
//   ESP_DYNAMIC_SHARED(float, kept);    a pointer to what the launch gives, instead of extern __shared__
//   ESP_GLOBAL(pointer);                after reading a pointer (not NULL) from a table: its accesses become ld.global
//   Pack<T, n>                          n elements that are loaded or stored at once, at a multiple of their size
//   load_packs, load_raw, load_places   several of them, all loads in flight at once
//   with_dtype                          a function template for the element type of a tensor
//   to_float, from_float                BF16 and F16 by the rules of the CPU kernels, NaN included; no intrinsics
//   Walk                                a grid-stride loop over the items of a list
//   bits_32                             32 bits of a mask, from any byte, reading nothing beside the tensor
//   is_last_block                       the block that finishes last sees what all others wrote
//   SharedCounters                      bins of a histogram in shared memory, counted up
//   let_next_begin, wait_for_kernel_before   between two kernels of an operation, see below
//   cluster_barrier, cluster_shared     between the blocks of a cluster, which run together (compute capability 9 and 10)
//   exp2_approximate                    2^x in one instruction, where an error of 2^-22 is stated and tested
// Indices into a tensor are int64_t; those within a chunk are int. Sums have one order, the CPU's. Contraction is off and
// fma explicit, as on the CPU, so that results have the same bits.
//
// In a test: include "device_test.h", allocate with Device<T>, compare with the CPU library, finish with `return
// run_tests(argc, argv, tests)`. ./build/tests/cuda/name_test_plain --seeds 20 runs it under 20 schedules; name_test_asan
// and name_test_tsan are the same under sanitizers. Reproduce a failure with --seed N. name_test_ptx runs what nvcc made of the
// kernel: EMULATOR_PTX='build/tests/cuda/ptx/*.compute_90.ptx' ./build/tests/cuda/name_test_ptx. The build target cuda-work counts its
// instructions: near 1 of the time that memory takes, and above, memory waits for them.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "device_limits.h"
#include "espalier/common.h"

#if defined(__CUDACC__)
#define ESP_SHARED(type, name, dimensions) __shared__ type name dimensions
#define ESP_DYNAMIC_SHARED(type, name)                    \
  extern __shared__ __align__(16) char name##_dynamic[]; \
  type* const name = reinterpret_cast<type*>(name##_dynamic)
#define ESP_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))
#else
#define ESP_SHARED(type, name, dimensions)   \
  static const char name##_place = 0;        \
  type(&name) dimensions = *reinterpret_cast<type(*) dimensions>( \
      ::emulator::shared_memory(&name##_place, sizeof(type dimensions)))
#define ESP_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::emulator::dynamic_shared_memory())
#define ESP_GLOBAL(pointer) static_cast<void>(pointer)
#endif

namespace esp {

// The status of a CUDA call; a failure's text names `what`.
esp_status check(cudaError_t error, const char* what);

struct Shape {
  int64_t grid;
  int block;
  int64_t dynamic_shared = 0;       // bytes
  int64_t most_dynamic_shared = 0;  // that any launch of the kernel on this device has: it is asked for, because without
                                    // asking a block has 48 KiB, of which its static memory is a part
  int cluster = 1;                  // blocks side by side that run together
  bool follows = false;             // a kernel of the same operation, directly: see wait_for_kernel_before
};

// Queues kernel<<<grid, block, dynamic_shared, stream>>>(arguments...).
template <class... P, class... A>
esp_status launch(const char* what, void (*kernel)(P...), const Shape& shape, void* stream, A&&... arguments) {
  if (shape.most_dynamic_shared > 0) {
    // The attribute is the kernel's: less than the most would take from another thread what it is about to launch with.
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.most_dynamic_shared));
    if (error != cudaSuccess) return check(error, what);
  }
  const dim3 grid(static_cast<unsigned>(shape.grid)), block(static_cast<unsigned>(shape.block));
  const size_t dynamic_shared = static_cast<size_t>(shape.dynamic_shared);
#if defined(__CUDACC__)
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  if (shape.follows) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  return check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), what);
#else
  return check(emulator::launch(kernel, {grid, block, dynamic_shared, shape.cluster, shape.follows},
                                static_cast<cudaStream_t>(stream), static_cast<P>(arguments)...),
               what);
#endif
}
template <class... P, class... A>
esp_status launch(const char* what, void (*kernel)(P...), int64_t grid, int block, void* stream, A&&... arguments) {
  return launch(what, kernel, Shape{grid, block}, stream, static_cast<A&&>(arguments)...);
}

// The kernels of one operation, launched with nothing between them: those after the first begin early where the device can,
// and each of them calls wait_for_kernel_before. The first one has waited for all that the stream had before.
class Kernels {
 public:
  Kernels(const DeviceLimits& limits, void* stream, bool launched = false)
      : early_(limits.early_kernels), launched_(launched), stream_(stream) {}
  template <class... P, class... A>
  esp_status launch(const char* what, void (*kernel)(P...), Shape shape, A&&... arguments) {
    shape.follows = early_ && launched_;
    launched_ = true;
    return esp::launch(what, kernel, shape, stream_, static_cast<A&&>(arguments)...);
  }
  template <class... P, class... A>
  esp_status launch(const char* what, void (*kernel)(P...), int64_t grid, int block, A&&... arguments) {
    return launch(what, kernel, Shape{grid, block}, static_cast<A&&>(arguments)...);
  }

 private:
  bool early_, launched_;
  void* stream_;
};

constexpr unsigned all_lanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x % 32); }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x / 32); }

// ---- elements

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// use(element) with an element of that type, whose value says nothing: function templates are picked by decltype(element).
template <class Use>
__device__ __forceinline__ auto with_dtype(esp_dtype dtype, const Use& use) {
  switch (dtype) {
    case ESP_BF16:
      return use(bf16{});
    case ESP_F16:
      return use(f16{});
    default:
      return use(float{});
  }
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity, or a NaN that becomes quiet
    return __uint_as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0));
  }
  // The exponent is 112 too small: a scaling by 2^112, exact for subnormals too.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  const uint32_t u = __float_as_uint(x);
  if (x != x) return {static_cast<uint16_t>(u >> 16 | 0x40)};
  return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  const uint32_t u = __float_as_uint(x), magnitude = u & 0x7fffffff;
  const uint32_t sign = u >> 16 & 0x8000;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff))};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to 2^16 or beyond: infinity
  if (magnitude < 0x38800000) {                                                // below 2^-14: subnormal
    // Adding 0.5 aligns the last place of the sum with 2^-24, the unit of subnormals.
    return {static_cast<uint16_t>(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)))};
}

// Two elements of 16 bits side by side; the results are those of to_float and from_float, by the device's own instructions.
template <class T>
__device__ __forceinline__ void to_floats(uint32_t word, float& low, float& high) {
  low = to_float(T{static_cast<uint16_t>(word)});
  high = to_float(T{static_cast<uint16_t>(word >> 16)});
}
template <>
__device__ __forceinline__ void to_floats<bf16>(uint32_t word, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
template <class T>
__device__ __forceinline__ uint32_t from_floats(float low, float high) {
  return static_cast<uint32_t>(from_float<T>(high).bits) << 16 | from_float<T>(low).bits;
}
#if defined(__CUDA_ARCH__)
template <>
__device__ __forceinline__ void to_floats<f16>(uint32_t word, float& low, float& high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(low), "=f"(high) : "r"(word));
}
#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ uint32_t from_floats<bf16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
__device__ __forceinline__ uint32_t from_floats<f16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
#endif
#endif

// 2^x within 2^-22 of itself; a result below 2^-126 is 0.
__device__ __forceinline__ float exp2_approximate(float x) {
#if defined(__CUDACC__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return emulator::exp2_approximate(x);
#endif
}

// n elements side by side, loaded or stored by one instruction where that is 2, 4, 8 or 16 bytes.
template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T at[n];
};

// The bytes of a value as those of another type of the same size.
template <class To, class From>
__device__ __forceinline__ To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "of the same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

__device__ __forceinline__ bool is_aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<unsigned>(bytes) == 0;
}

// Elements i .. i+n-1 of p; those from `end` on are +0. `whole`: p is aligned to a pack (not: to an element).
template <int n, class T, class Index>
__device__ __forceinline__ Pack<T, n> load_pack(const T* p, Index i, Index end, bool whole) {
  if (whole && i + n <= end) return *reinterpret_cast<const Pack<T, n>*>(p + i);
  Pack<T, n> pack;
#pragma unroll
  for (int j = 0; j < n; j++) pack.at[j] = i + j < end ? p[i + j] : T{};
  return pack;
}
// A pack as 32-bit words. 16-bit elements are unpacked where they are used: unpacked where they are loaded, each load would be
// waited for before the next is issued.
template <int n, class T>
using RawPack = Pack<uint32_t, n * static_cast<int>(sizeof(T)) / 4>;
// A pack at p with `left` elements in the tensor, of which there may be more than n or fewer than 1; +0 beyond.
template <int n, class T>
__device__ __forceinline__ RawPack<n, T> load_raw(const T* p, int left) {
  if (is_aligned(p, n * sizeof(T)) && left >= n) return *reinterpret_cast<const RawPack<n, T>*>(p);
  return bits_as<RawPack<n, T>>(load_pack<n>(p, 0, left, false));
}
// The same of several packs, at the same places of several tensors. All loads are issued before one is waited for.
template <int n, int tensors, int count, class T>
__device__ __forceinline__ void load_places(const T* const (&p)[tensors], const int64_t (&at)[count], const int (&left)[count],
                                            RawPack<n, T> (&packs)[tensors][count]) {
  bool whole = true;
#pragma unroll
  for (int k = 0; k < count; k++) {
    whole = whole && (left[k] >= n || left[k] <= 0);
#pragma unroll
    for (int t = 0; t < tensors; t++) whole = whole && is_aligned(p[t] + at[k], n * sizeof(T));
  }
  if (whole) {
#pragma unroll
    for (int k = 0; k < count; k++) {
#pragma unroll
      for (int t = 0; t < tensors; t++) {
        packs[t][k] = {};
        if (left[k] > 0) packs[t][k] = *reinterpret_cast<const RawPack<n, T>*>(p[t] + at[k]);
      }
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < count; k++) {
#pragma unroll
    for (int t = 0; t < tensors; t++) packs[t][k] = load_raw<n>(p[t] + at[k], left[k]);  // a branch each: load by load
  }
}
// Packs i, i + step, ... of p. All loads are issued before one is waited for, which a branch for each pack, or unpacking
// 16-bit elements between two loads, would prevent.
template <int n, int count, class T, class Index>
__device__ __forceinline__ void load_packs(const T* p, Index i, Index step, Index end, bool whole,
                                           Pack<T, n> (&packs)[count]) {
  if (whole && (end - i) % n == 0) {  // a pack is inside or outside, and none is cut
    RawPack<n, T> words[count];
#pragma unroll
    for (int k = 0; k < count; k++) {
      words[k] = {};
      if (i + k * step < end) words[k] = *reinterpret_cast<const RawPack<n, T>*>(p + i + k * step);
    }
#pragma unroll
    for (int k = 0; k < count; k++) packs[k] = bits_as<Pack<T, n>>(words[k]);
    return;
  }
#pragma unroll
  for (int k = 0; k < count; k++) packs[k] = load_pack<n>(p, i + k * step, end, whole);
}
// A pack to global memory, aligned, by one instruction: the compiler takes some apart.
template <class T, int n>
__device__ __forceinline__ void store_whole(T* p, const Pack<T, n>& pack) {
#if defined(__CUDACC__)
  constexpr int bytes = n * static_cast<int>(sizeof(T));
  const size_t to = __cvta_generic_to_global(p);
  if constexpr (bytes == 16) {
    const auto word = bits_as<Pack<uint32_t, 4>>(pack);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.at[0]), "r"(word.at[1]), "r"(word.at[2]),
                 "r"(word.at[3])
                 : "memory");
  } else if constexpr (bytes == 8) {
    const auto word = bits_as<Pack<uint32_t, 2>>(pack);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word.at[0]), "r"(word.at[1]) : "memory");
  } else {
    static_assert(bytes == 4, "4, 8 or 16 bytes");
    asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(bits_as<uint32_t>(pack)) : "memory");
  }
#else
  *reinterpret_cast<Pack<T, n>*>(p) = pack;
#endif
}
template <int n, class T, class Index>
__device__ __forceinline__ void store_pack(T* p, Index i, Index end, bool whole, const Pack<T, n>& pack) {
  if (whole && i + n <= end) {
    store_whole(p + i, pack);
    return;
  }
#pragma unroll
  for (int j = 0; j < n; j++) {
    if (i + j < end) p[i + j] = pack.at[j];
  }
}

// The largest of the warp's integers, in all of its lanes. Called by whole warps.
__device__ __forceinline__ int warp_max(int x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(all_lanes, x);
#else
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    const int other = __shfl_xor_sync(all_lanes, x, apart);
    x = x > other ? x : other;
  }
  return x;
#endif
}

// ---- bit fields: one bit an element, (end + 7) / 8 bytes, at any address

// The bits of elements i .. i+31, i a multiple of 8; those from `end` on are rubbish. nullptr: all ones.
__device__ __forceinline__ uint32_t bits_32(const uint8_t* field, int64_t i, int64_t end) {
  if (field == nullptr) return 0xffffffffu;
  const uint8_t* const p = field + i / 8;
  ESP_GLOBAL(p);
  if (i + 24 < end && is_aligned(p, 4)) return *reinterpret_cast<const uint32_t*>(p);
  uint32_t word = 0;
#pragma unroll
  for (int byte = 0; byte < 4; byte++) {
    if (i + byte * 8 < end) word |= static_cast<uint32_t>(p[byte]) << (byte * 8);
  }
  return word;
}

// The items of a list that a block works on, as in a grid-stride loop; the next one is loaded while one is worked on.
template <class Item>
struct Walk {
  const Item* items;
  uint32_t at, count;
  Item next;
  __device__ Walk(const Item* list, int32_t length)
      : items(list), at(blockIdx.x), count(static_cast<uint32_t>(length)), next{} {
    if (at < count) next = items[at];
  }
  __device__ __forceinline__ bool ends() const { return at >= count; }
  __device__ __forceinline__ Item take() {
    const Item item = next;
    at += gridDim.x;
    if (at < count) next = items[at];
    return item;
  }
};

// Counters in shared memory, from one of them on. Their address is held in a register: the compiler would ask for it anew at
// each count, which takes half as many instructions as all else that is done for a key.
class SharedCounters {
 public:
#if defined(__CUDACC__)
  __device__ __forceinline__ explicit SharedCounters(uint32_t* first) {
    asm volatile("mov.u32 %0, %1;" : "=r"(first_) : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(first))));
  }
  __device__ __forceinline__ void add_one(uint32_t index) const {
    asm volatile("{ .reg .u32 before; atom.shared.add.u32 before, [%0], 1; }" ::"r"(first_ + index * 4) : "memory");
  }

 private:
  uint32_t first_;
#else
  explicit SharedCounters(uint32_t* first) : first_(first) {}
  void add_one(uint32_t index) const { atomicAdd(&first_[index], 1u); }

 private:
  uint32_t* first_;
#endif
};

// ---- between kernels of an operation (programmatic dependent launch)

// Lets the blocks of the next kernel begin: they do when each block of this kernel has called this, or has ended. All blocks
// of this kernel have their room by then, so it takes none from them. For kernels that another one of the operation follows;
// the last one leaves it out, because kernels of the caller may rely on more than ours do.
__device__ __forceinline__ void let_next_begin() {
#if !defined(__CUDACC__)
  emulator::let_next_begin();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Waits until the kernel before has ended, and sees what it wrote. In every thread of every kernel that can come second, on
// every way, because the next kernel waits for this one alone. Before it a kernel may read what no earlier kernel of the
// operation writes, and writes nothing but its shared memory. What it reads after it is not const __restrict__, but for
// tables: such a load may be moved before it.
__device__ __forceinline__ void wait_for_kernel_before() {
#if !defined(__CUDACC__)
  emulator::wait_for_kernel_before();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- between blocks

// Adds 1 and returns what was there. What was written before, by those too whom a barrier has joined with this thread, is seen
// by whoever counts later. One instruction that orders no more than that: __threadfence() is one of all fences that have an
// order among themselves, and two of them take longer than the atomic.
__device__ __forceinline__ uint32_t count_arrival(uint32_t* arrived) {
#if defined(__CUDACC__)
  uint32_t before;
  const size_t counter = __cvta_generic_to_global(arrived);
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
#else
  __threadfence();
  const uint32_t before = atomicAdd(arrived, 1u);
  __threadfence();
  return before;
#endif
}
// Called by all threads of a block; true in all threads of the block that comes last of `blocks`, which then sees what the
// others wrote before their call (loads must be plain: not __ldg, not const __restrict__). Starts at 0 and leaves 0.
__device__ __forceinline__ bool is_last_block(uint32_t* arrived, uint32_t blocks) {
  ESP_SHARED(uint32_t, last, [1]);
  __syncthreads();
  if (threadIdx.x == 0) {
    last[0] = count_arrival(arrived) == blocks - 1 ? 1 : 0;
    if (last[0] != 0) atomicExch(arrived, 0u);  // a plain store would race with the atomics of the others
  }
  __syncthreads();
  return last[0] != 0;
}

// Waits for all threads of all blocks of the cluster; what they wrote to shared memory before is seen after.
__device__ __forceinline__ void cluster_barrier() {
#if !defined(__CUDACC__)
  emulator::cluster_barrier();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
#else
  __trap();  // code for devices without clusters that was launched in one: PTX forced upon a device that has them
#endif
}
// Where the `own` of block `rank` of the cluster is; that block has begun and must not have ended.
template <class T>
__device__ __forceinline__ const T* cluster_shared(T* own, int rank) {
#if !defined(__CUDACC__)
  return static_cast<const T*>(emulator::cluster_shared(own, rank));
#elif __CUDA_ARCH__ >= 900
  const T* other;
  asm("mapa.u64 %0, %1, %2;" : "=l"(other) : "l"(own), "r"(rank));
  return other;
#else
  static_cast<void>(rank);
  return own;
#endif
}

}  // namespace esp
