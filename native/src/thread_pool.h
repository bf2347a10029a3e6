// Runs the pieces of one call on several threads.
#pragma once
#include <cstdint>
#include <type_traits>

#include "espalier/common.h"

namespace esp {

// task(argument, i) for each i in [0, count). The caller works too; a busy pool (another caller's, or a nested call)
// means that the caller runs alone. Returns when all are done, with their writes visible.
void run_parallel(int64_t count, esp_task task, void* argument);

// The same for a callable that takes the index.
template <class Task>
void parallel_for(int64_t count, Task&& task) {
  using Callable = std::remove_reference_t<Task>;
  run_parallel(
      count, [](void* argument, int64_t index) { (*static_cast<Callable*>(argument))(index); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

// Work below this many bytes of traffic stays on the caller: waking a worker costs more.
constexpr int64_t parallel_bytes = int64_t{256} << 10;

// task(i) for each i in [0, count): on several threads where `bytes` of traffic are worth it.
template <class Task>
void parallel_for(int64_t count, int64_t bytes, Task&& task) {
  if (bytes < parallel_bytes) {
    for (int64_t i = 0; i < count; i++) task(i);
  } else {
    parallel_for(count, task);
  }
}

// Runs body(first, elements) over pieces of a list of n elements, on several threads where these are four or more. A
// piece has 16,384 elements, so that it begins with a block of any smaller power of two.
template <class Body>
void for_pieces(int64_t n, const Body& body) {
  constexpr int64_t piece = 16384;
  const auto run = [&](int64_t index) {
    const int64_t first = index * piece;
    body(first, n - first < piece ? n - first : piece);
  };
  const int64_t pieces = (n + piece - 1) / piece;
  if (pieces < 4) {
    for (int64_t index = 0; index < pieces; index++) run(index);
  } else {
    parallel_for(pieces, run);
  }
}

// Threads that one call may use: esp_threads_current, for callers whose operation has checked it already.
int32_t thread_limit();

// From this output size on, stores that bypass the cache pay: the data would not be there when it is read again.
constexpr int64_t cache_bytes = int64_t{4} << 20;

}  // namespace esp
