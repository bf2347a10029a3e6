// Marks what both processors and CUDA devices run.
#pragma once

#if defined(__CUDACC__)
#define ESP_EVERYWHERE __host__ __device__
#define ESP_INLINED_EVERYWHERE static __host__ __device__ __forceinline__
#else
#define ESP_EVERYWHERE
// For what is compiled for an instruction set too: each object has its own, wherever it is called.
#define ESP_INLINED_EVERYWHERE static inline __attribute__((always_inline))
#endif
