// What the stand-ins for CUDA's runtime share. Each of them is extern "C" and declared in cuda_runtime.h.
#pragma once
#include <functional>
#include <mutex>

#include "cuda_runtime.h"

namespace emulator {

// Callers may be several threads: each call is alone, and so is what it runs.
extern std::recursive_mutex calls;
struct Alone {
  Alone() { calls.lock(); }
  Alone(const Alone&) = delete;
  ~Alone() { calls.unlock(); }
};

extern cudaError_t last_error;
// Keeps an error as the last one.
cudaError_t note(cudaError_t error);
// What every call returns once a launch has failed.
cudaError_t usable();

// Whether any stream, or this one, records a graph.
bool capturing();
bool capturing(cudaStream_t stream);
void wait_for_all();
cudaError_t enqueue(cudaStream_t to, std::function<void()> run);

}  // namespace emulator
