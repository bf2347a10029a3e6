#include "launches.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "emulator.h"
#include "memory.h"
#include "runtime.h"
#include "sanitizers.h"
#include "schedule.h"

namespace emulator {
namespace {

Cluster clusters[max_resident];

// Kernels that may take more than 48 KiB, on each kind of device.
std::map<std::pair<const void*, int>, size_t> allowed_dynamic;

uint64_t greatest_common_divisor(uint64_t a, uint64_t b) {
  while (b != 0) {
    const uint64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// What a kernel runs of, in which order, and where. Kernels that follow one another have half of the slots in turn.
void prepare(Grid* grid, const Launch& launch, Grid* before, bool alone, int turn) {
  const dim3 size = launch.shape.grid;
  const int cluster = launch.shape.cluster, most = alone ? max_resident : max_resident / 2;
  grid->launch = &launch;
  grid->before = before;
  // Counted in clusters, whose blocks are in flight together.
  const int64_t all = static_cast<int64_t>(size.x) * size.y * size.z / cluster;
  const int64_t from = options.first_block / cluster, last = options.last_block / cluster;
  grid->first = from < all ? from : 0;
  const int64_t end = options.last_block < 0 || last > all || from >= all ? all : last;
  grid->count = end > grid->first ? end - grid->first : 0;
  grid->blocks = grid->count * cluster;
  const int wanted = options.resident < 1 ? 1 : options.resident > most ? most : options.resident;
  grid->slots = (wanted + cluster - 1) / cluster * cluster;
  grid->first_slot = turn % 2 * most;
  // i * stride + offset modulo their number.
  const uint64_t n = static_cast<uint64_t>(grid->count);
  if (options.order == Order::random && n > 1) {
    do {
      grid->stride = 1 + random_below(n < 1000000 ? n : 1000000);
    } while (greatest_common_divisor(grid->stride, n) != 1);
    grid->offset = random_below(n);
  }
}

// Starts blocks of a kernel wherever there is room; `launched` counts threads of all kernels.
void fill_slots(Grid* grid, bool (&busy)[max_resident], int64_t* launched) {
  const int cluster = grid->launch->shape.cluster;
  const dim3 size = grid->launch->shape.grid;
  const uint64_t n = static_cast<uint64_t>(grid->count);
  for (int slot = grid->first_slot; slot < grid->first_slot + grid->slots && grid->started < grid->count; slot += cluster) {
    bool free = true;
    for (int rank = 0; rank < cluster; rank++) free = free && !busy[slot + rank];
    if (!free) continue;
    newest = grid;
    clusters[slot] = Cluster();
    const uint64_t turn = static_cast<uint64_t>(grid->started);
    const uint64_t at = static_cast<uint64_t>(grid->first) +
                        (options.order == Order::backward
                             ? n - 1 - turn
                             : static_cast<uint64_t>(
                                   (static_cast<unsigned __int128>(turn) * grid->stride + grid->offset) % n));
    for (int rank = 0; rank < cluster; rank++) {
      const uint64_t block = at * static_cast<uint64_t>(cluster) + static_cast<uint64_t>(rank);
      const uint3 index = {static_cast<unsigned>(block % size.x), static_cast<unsigned>(block / size.x % size.y),
                           static_cast<unsigned>(block / size.x / size.y)};
      blocks[slot + rank].slot = slot + rank;
      blocks[slot + rank].cluster = clusters + slot;
      start(&blocks[slot + rank], grid, index, *launched);
      *launched += blocks[slot + rank].threads;
      busy[slot + rank] = true;
    }
    grid->started++;
  }
}

}  // namespace

void run_launches(const std::vector<Launch>& launches) {
  unsigned most_threads = 0;
  for (const Launch& launch : launches) {
    const dim3 size = launch.shape.block;
    if (size.x * size.y * size.z > most_threads) most_threads = size.x * size.y * size.z;
  }
  begin_schedule(most_threads);
  finished = nullptr;
  std::vector<Grid> grids(launches.size());
  for (size_t g = 0; g < grids.size(); g++) {
    prepare(&grids[g], launches[g], g > 0 ? &grids[g - 1] : nullptr, grids.size() == 1, static_cast<int>(g));
  }
  int in_flight = 0;
  for (size_t g = 0; g < grids.size(); g++) {
    in_flight = std::max(in_flight, grids[g].slots + (g > 0 ? grids[g - 1].slots : 0));
  }
  identities = std::max<int64_t>(blocks_apart, in_flight + 2) * most_threads;
  draw_temper(grids.size() > 1, grids[0].slots, most_threads);

#if defined(EMULATOR_TSAN)
  host.identity = __tsan_get_current_fiber();
#endif
  release(&launch_begins);
  ignore_accesses(true);
  open_all(true);
  bool busy[max_resident] = {};
  int64_t launched = 0;
  size_t begun = 1, ended = 0;
  while (!failed) {
    while (ended < grids.size() && grids[ended].ended == grids[ended].blocks) ended++;
    if (ended == grids.size()) break;
    // The slots of the one before the last are those of the next.
    while (begun < grids.size() && begun < ended + 2 && grids[begun - 1].let_next == grids[begun - 1].blocks) begun++;
    for (size_t g = ended; g < begun; g++) fill_slots(&grids[g], busy, &launched);
    if (Fiber* next = next_ready()) {
      switch_to(next);
    } else {
      report_deadlock();
    }
    if (finished != nullptr) {
      busy[finished->slot] = false;
      Grid* const grid = finished->grid;
      count_let_next(finished);
      if (++grid->ended == grid->blocks) {
        for (Fiber* fiber = grid->waiting; fiber != nullptr; fiber = fiber->waiter) make_ready(fiber);
      }
      finished = nullptr;
    }
  }
  for (Block& block : blocks) {
    free_shared(&block);
    block.alive = 0;
    block.cluster = nullptr;
    block.grid = nullptr;
  }
  open_all(false);
  ignore_accesses(false);
  for (Grid& grid : grids) acquire(&grid.ends);
  if (failed)
    std::fprintf(stderr, "emulator: %s (seed %llu)\n", report, static_cast<unsigned long long>(options.seed));
}

static size_t most_of_a_block() {
  return static_cast<size_t>(options.shared_per_multiprocessor) - 1024;
}
size_t most_shared(const void* function) {
  const bool asked = allowed_dynamic.count({function, options.shared_per_multiprocessor}) > 0;
  return asked ? most_of_a_block() : std::min(shared_limit, most_of_a_block());
}

const char* impossible(const void* function, const Shape& shape) {
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  if (threads == 0 || threads > max_threads || shape.block.z > 64)
    return "a block of 1 to 1024 threads is needed";
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return "an empty grid";
  if (shape.grid.x > 2147483647u || shape.grid.y > 65535 || shape.grid.z > 65535) return "too large a grid";
  const auto allowed = allowed_dynamic.find({function, options.shared_per_multiprocessor});
  if (shape.dynamic_shared > (allowed == allowed_dynamic.end() ? shared_limit : allowed->second))
    return "more dynamic shared memory than 48 KiB or what was asked for";
  if (shape.cluster < 1 || shape.cluster > max_cluster ||
      shape.grid.x % static_cast<unsigned>(shape.cluster) != 0)
    return "a grid that is no whole number of clusters of at most 8 blocks";
  if (shape.cluster > 1 && options.major < 9) return "clusters on a device that has none";
  if (shape.follows && options.major < 9) return "a kernel that follows another on a device where none can";
  return nullptr;
}

cudaError_t allow_dynamic_shared(const void* function, size_t bytes) {
  const Alone alone;
  size_t& allowed = allowed_dynamic[{function, options.shared_per_multiprocessor}];
  // CUDA would take less; but another thread may be about to launch with what was allowed before.
  if (bytes > most_of_a_block() || bytes < allowed) return note(cudaErrorInvalidValue);
  allowed = bytes;
  return cudaSuccess;
}

void forget_allowed() {
  allowed_dynamic.clear();
}

}  // namespace emulator
