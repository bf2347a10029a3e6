// How a launch comes to the emulator. Included behind cuda_runtime.h, this folder's or CUDA's own.
#pragma once

namespace emulator {

typedef void (*Call)(void* arguments);
// How a kernel is launched; `cluster` blocks side by side are one cluster. One that follows may begin before the kernel
// that was queued last has ended (programmatic stream serialization).
struct Shape {
  dim3 grid, block;
  size_t dynamic_shared;
  int cluster;
  bool follows = false;
};
cudaError_t allow_dynamic_shared(const void* kernel, size_t bytes);
// Queues a launch and takes over its arguments, which a graph may use again.
cudaError_t queue_launch(const void* kernel, Call call, void* arguments, void (*destroy)(void*), const Shape& shape,
                         cudaStream_t stream);

}  // namespace emulator
