// Runs the project's CUDA sources on the CPU, for tests: every CUDA thread is a fiber, and blocks, warps and lanes are
// interleaved in a seeded order. cuda_runtime.h beside this file is what those sources include in place of CUDA's own.
//
// What it reports as the failure of a launch, with block and thread:
//   barriers that diverge, warp operations whose lanes are missing, have exited or do something else, shuffles from a lane
//   outside the mask, deadlocks, endless spinning, misaligned atomics, too much shared memory, an impossible grid, a look into
//   the shared memory of a block that has ended, a thread that exits without having waited for the kernel that its own
//   follows; and as a call's, a kernel's shared memory limited to less than before, which
//   the launch of another thread may need.
// A failed launch makes the device unusable for the rest of the process, as on a GPU: calls return cudaErrorLaunchFailure.
//
// What shows errors without a report of its own: shared memory and fresh device memory are filled with NaN or rubbish, in
// every block anew; the schedule may hold back one warp, one block, or all kernels but the latest for as long as anything else
// can run; a kernel that follows another begins as soon as that one allows; streams run nothing before something waits for
// them. Under ASAN, device memory is poisoned outside kernels and copies and allocations have exactly their size. Under TSAN
// each CUDA thread is a thread of its own; only barriers, __syncwarp, fences with atomics, acquire/release and waiting for the
// kernel before order memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

enum class Order { random, forward, backward };

struct Options {
  uint64_t seed = 1;  // of the schedule, the order of blocks and the rubbish in fresh memory
  Order order = Order::random;
  int resident = 3;            // blocks in flight at once, 1 to 16; 8 of each kernel where one follows another
  int preempt_percent = 25;    // chance to switch before an atomic operation or a fence
  int64_t switches = 1 << 30;  // a launch that takes more is taken to spin for ever
  // Of the grid only blocks [first_block, last_block) run, for sparse tests; -1: to the end. A grid that does not reach
  // first_block runs whole.
  int64_t first_block = 0, last_block = -1;
  // Of the device: memory that the blocks of a multiprocessor share, compute capability (clusters from 9 on).
  int shared_per_multiprocessor = 228 * 1024, major = 9, minor = 0;
  int multiprocessors = 1;  // so that a kernel whose blocks run together has few of them with much to do
  int driver = 13000;       // the version of CUDA that it supports
};
extern Options options;

// The report of the launch that failed, "" where none has.
const char* failure();
// As a new process would start: no failure, nothing queued.
void reset();
// The n-th allocation from now fails; 0: none does.
void fail_allocation(int64_t n);
// Device memory that is allocated, and calls that CUDA serves by waiting for the device.
size_t allocated_bytes();
int64_t synchronizations();

}  // namespace emulator
