// The threads of CUDA as fibers, the warps, blocks and kernels that they are of, and how one fiber gives way to another.
#pragma once
#include <memory>

#include "cuda_runtime.h"

namespace emulator {

constexpr int max_resident = 16, max_threads = 1024, max_shared_arrays = 16, max_cluster = 8;

struct Block;
struct Grid;
struct Fiber : Thread {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  Block* of = nullptr;
  bool exited = false;
  bool waited = false;      // for the kernel before
  Fiber* waiter = nullptr;  // that came before to wait for it
  const char* waits_in = "";
  void* fake_stack = nullptr;  // ASAN
  void* identity = nullptr;    // TSAN
  int64_t known = -1;          // its number among them
  bool fenced = false;         // since its last barrier
  unsigned atomics = 0;
  const void* atomic[8] = {};  // the addresses of the latest
};

// Lanes of a warp that meet.
struct Meeting {
  WarpOp op;
  unsigned mask, arrived, left;
  bool complete;
  uint64_t value[32], result;
  Fiber* fiber[32];
};
struct Warp {
  unsigned exited, open;  // bits of lanes, of meetings
  Meeting meeting[32];
};

// Blocks that are in flight together, in neighbouring slots.
struct Cluster {
  int alive = 0, waiting = 0;  // threads
  unsigned phase = 0;
  char order[2] = {};  // addresses for acquire and release
};

struct Block {
  int slot = 0, threads = 0, alive = 0;
  Grid* grid = nullptr;
  bool let_next = false;  // the next kernel begin
  int waiting = 0, line = 0, votes = 0, voted[2] = {};
  unsigned phase = 0;
  char order[2] = {};  // addresses for acquire and release
  Cluster* cluster = nullptr;
  Fiber* fibers = nullptr;
  Warp* warps = nullptr;
  struct {
    const void* place;
    void* memory;
    size_t bytes;
  } shared[max_shared_arrays] = {};
  int shared_arrays = 0;
  size_t shared_bytes = 0, dynamic_bytes = 0;
  void* dynamic = nullptr;
};

// How a kernel was launched.
struct Launch {
  Call call;
  std::shared_ptr<void> arguments;
  Shape shape;
  size_t most_shared;  // that a block may have, static and dynamic together
};

// A kernel that runs. One that follows it may begin when each of its blocks has let it, or has ended.
struct Grid {
  const Launch* launch = nullptr;
  Grid* before = nullptr;                      // the kernel that it follows
  int64_t first = 0, count = 0, started = 0;   // in clusters
  int64_t blocks = 0, let_next = 0, ended = 0;
  uint64_t stride = 1, offset = 0;             // the order of clusters
  int first_slot = 0, slots = 0;
  Fiber* waiting = nullptr;  // of the kernel after it: the latest
  char ends = 0;             // an address for acquire and release
};

extern Block blocks[max_resident];
extern Fiber host, *self;
extern Block* finished;                  // its last thread has just exited
// Under the thread sanitizer: how many threads of a launch are told apart, those of 8 blocks or of all in flight and two more.
constexpr int64_t blocks_apart = 8, most_identities = (max_resident + 2) * max_threads;
extern int64_t identities;
extern char launch_begins, launch_ends;  // addresses for acquire and release, of all kernels that run together

extern char report[1024];
extern bool failed;

// Starts the threads of a block; `launched` threads of all kernels that run together were started before.
void start(Block* block, Grid* grid, uint3 index, int64_t launched);
// `for_ever`: the fiber that calls never runs again.
void switch_to(Fiber* to, bool for_ever = false);
// Has others run until something makes this fiber ready.
void wait_in(const char* what);
// Has others run, and stays ready.
void yield();
void report_deadlock();
void release_barrier(Block* block);
void release_cluster(Cluster* cluster);
// The kernel after this block's may begin as far as this block is concerned.
void count_let_next(Block* block);

}  // namespace emulator
