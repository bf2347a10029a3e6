// The runtime of emulator.h: fibers, scheduler, barriers, warp operations, streams, memory.
//
// Compiled WITHOUT -fsanitize, with EMULATOR_ASAN or EMULATOR_TSAN where the rest of the program is
// sanitized: what it does for itself must not look like accesses of the CUDA thread that it does it for.
// EMULATOR_PROTECT has the system stop who touches device memory outside kernels and copies, as ASAN does.
#include "emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <sys/mman.h>

#include "cuda_runtime.h"

#if defined(EMULATOR_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_unpoison_memory_region(void const volatile*, size_t);
void __asan_poison_memory_region(void const volatile*, size_t);
}
#endif
#if defined(EMULATOR_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_set_fiber_name(void*, const char*);
void __tsan_switch_to_fiber(void*, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

#if !defined(__x86_64__)
#error "emulator_switch is written for x86-64"
#endif
extern "C" void emulator_switch(void** saved, void* next);
// Saves what a callee must keep on the old stack and takes it from the new one.
asm(R"(
.text
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

namespace emulator {

// Callers may be several threads: each call is alone, and so is what it runs.
std::recursive_mutex calls;
struct Alone {
  Alone() { calls.lock(); }
  Alone(const Alone&) = delete;
  ~Alone() { calls.unlock(); }
};

Options options;
Thread* current = nullptr;

namespace {

constexpr int max_resident = 16, max_threads = 1024, max_shared_arrays = 16, max_cluster = 8;
constexpr size_t shared_limit = 48 * 1024;
#if defined(EMULATOR_ASAN)
constexpr size_t stack_bytes = 256 * 1024;
#else
constexpr size_t stack_bytes = 64 * 1024;
#endif

// ---- what the thread sanitizer is told

void acquire([[maybe_unused]] void* address) {
#if defined(EMULATOR_TSAN)
  __tsan_acquire(address);
#endif
}
void release([[maybe_unused]] void* address) {
#if defined(EMULATOR_TSAN)
  __tsan_release(address);
#endif
}
// Accesses between the two calls are ours: malloc and memset are watched even here.
void ignore_accesses([[maybe_unused]] bool on) {
#if defined(EMULATOR_TSAN)
  if (on) {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  } else {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#endif
}
char launch_begins, launch_ends;  // addresses for acquire and release, of all kernels that run together

// ---- threads, warps, blocks

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

Block blocks[max_resident];
Cluster clusters[max_resident];
Fiber host, *self = &host;
Block* finished = nullptr;  // its last thread has just exited
const Grid* newest = nullptr;  // of those that have begun

char report[1024];
bool failed = false;

// ---- the schedule

uint64_t random_state = 1;
uint64_t random64() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state * 0x2545f4914f6cdd1dull >> 16;
}
uint64_t random_below(uint64_t bound) {
  return random64() % bound;
}

// Fibers that can run, a ring. A random schedule takes any of them; one that only does that moves all warps
// forward at one pace and misses what a warp far ahead overwrites. So each launch draws a temper: even, the
// newest first (one warp runs ahead), or holding back one warp or one block for as long as anything else can
// run; or all kernels but the one that began last.
Fiber** ready = nullptr;
unsigned ready_head, ready_tail, ready_mask;
enum class Temper { even, newest, starve } temper;
int starved_warp, starved_slot;  // -1: none
bool starves_before;             // kernels that another one follows
int64_t switches_left;

void make_ready(Fiber* fiber) {
  ready[ready_tail++ & ready_mask] = fiber;
}

bool starved(const Fiber* fiber) {
  return fiber->warp == starved_warp || fiber->of->slot == starved_slot ||
         (starves_before && fiber->of->grid != newest);
}

Fiber* next_ready() {
  if (ready_head == ready_tail) return nullptr;
  if (options.order == Order::backward) return ready[--ready_tail & ready_mask];
  if (options.order == Order::random) {
    if (temper == Temper::newest && random_below(64) != 0) return ready[--ready_tail & ready_mask];
    for (int tries = temper == Temper::starve ? 12 : 1; tries > 0; tries--) {
      const unsigned i = ready_head + static_cast<unsigned>(random_below(ready_tail - ready_head));
      std::swap(ready[i & ready_mask], ready[ready_head & ready_mask]);
      if (temper != Temper::starve || !starved(ready[ready_head & ready_mask])) break;
    }
  }
  return ready[ready_head++ & ready_mask];
}

[[maybe_unused]] const void* host_stack = nullptr;
[[maybe_unused]] size_t host_stack_bytes = 0;

void switch_to(Fiber* to, [[maybe_unused]] bool for_ever = false) {
  Fiber* const from = self;
  if (from == to) return;
  self = to;
  current = to == &host ? nullptr : to;
#if defined(EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &from->fake_stack, to == &host ? host_stack : to->stack,
                                 to == &host ? host_stack_bytes : stack_bytes);
#endif
#if defined(EMULATOR_TSAN)
  __tsan_switch_to_fiber(to->identity, 1);  // 1: the switch itself orders nothing
#endif
  emulator_switch(&from->stack_pointer, to->stack_pointer);
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int n = std::vsnprintf(report, sizeof report, format, arguments);
  va_end(arguments);
  std::snprintf(report + n, sizeof report - static_cast<size_t>(n), ", in block (%u,%u,%u) thread (%u,%u,%u)",
                self->block.x, self->block.y, self->block.z, self->thread.x, self->thread.y, self->thread.z);
  failed = true;
  release(&launch_ends);
  switch_to(&host, true);
  __builtin_unreachable();
}

namespace {

void report_deadlock() {
  int n = std::snprintf(report, sizeof report, "deadlock:");
  for (const Block& block : blocks) {
    const char* before = nullptr;
    for (int t = 0; t < (block.alive > 0 ? block.threads : 0) && n < 800; t++) {
      const Fiber& fiber = block.fibers[t];
      if (fiber.exited || fiber.waits_in == before) continue;
      before = fiber.waits_in;
      n += std::snprintf(report + n, sizeof report - static_cast<size_t>(n),
                         " block %u from thread %d on waits in %s;", fiber.block.x, t, before);
    }
  }
  failed = true;
}

void wait_in(const char* what) {
  self->waits_in = what;
  Fiber* const next = next_ready();
  if (next == nullptr) {
    report_deadlock();
    release(&launch_ends);
    switch_to(&host, true);
    __builtin_unreachable();
  }
  switch_to(next);
}

void yield() {
  if (--switches_left <= 0) fail("no end in sight: something spins for ever");
  // To the old end: "newest first" must not choose a spinning thread for ever.
  ready[--ready_head & ready_mask] = self;
  if (options.order == Order::forward) {
    ready_head++;
    make_ready(self);
  }
  switch_to(next_ready());
}

void release_barrier(Block* block) {
  block->voted[block->phase & 1] = block->votes;
  block->waiting = block->votes = block->line = 0;
  block->phase++;
  for (int t = 0; t < block->threads; t++) {
    if (block->fibers + t != self && !block->fibers[t].exited) make_ready(block->fibers + t);
  }
}

void release_cluster(Cluster* cluster) {
  cluster->waiting = 0;
  cluster->phase++;
  for (Block& block : blocks) {
    for (int t = 0; block.cluster == cluster && t < (block.alive > 0 ? block.threads : 0); t++) {
      if (block.fibers + t != self && !block.fibers[t].exited) make_ready(block.fibers + t);
    }
  }
}

// Where every fiber begins.
void run_thread() {
#if defined(EMULATOR_ASAN)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (host_stack == nullptr) {  // the first switch of all came from there
    host_stack = bottom;
    host_stack_bytes = size;
  }
#endif
  acquire(&launch_begins);
  Block* const block = self->of;
  const Launch& launch = *block->grid->launch;
  launch.call(launch.arguments.get());
  if (block->grid->before != nullptr && !self->waited) fail("a thread exits that has not waited for the kernel before");
  Warp& warp = block->warps[self->warp];
  for (unsigned open = warp.open; open != 0; open &= open - 1) {
    const Meeting& meeting = warp.meeting[__builtin_ctz(open)];
    if (!meeting.complete && (meeting.mask >> self->lane & 1) != 0) {
      fail("a lane exits that the lanes %08x of its warp wait for", meeting.arrived);
    }
  }
  release(&block->grid->ends);
  self->exited = true;
  warp.exited |= 1u << self->lane;
  block->alive--;
  Cluster* const cluster = block->cluster;
  // Threads that have exited do not count.
  if (--cluster->alive > 0 && cluster->waiting == cluster->alive) release_cluster(cluster);
  if (block->alive == 0) {
    finished = block;
    switch_to(&host, true);
  } else if (block->waiting == block->alive) {
    release_barrier(block);
  }
  Fiber* next = next_ready();
  if (next == nullptr) {
    report_deadlock();
    next = &host;
  }
  switch_to(next, true);
  __builtin_unreachable();
}

char* new_stack() {
  constexpr size_t guard = 4096;
  void* const memory = mmap(nullptr, stack_bytes + guard, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("emulator: a stack");
    std::abort();
  }
  mprotect(memory, guard, PROT_NONE);
  return static_cast<char*>(memory) + guard;
}

// NaN, or rubbish without a zero byte.
void fill_fresh(void* memory, size_t bytes) {
  const uint64_t pattern = random_below(2) != 0 ? ~uint64_t{0} : random64() | 0x0101010101010101ull;
  unsigned char* const byte = static_cast<unsigned char*>(memory);
  size_t i = 0;
  for (; i + sizeof pattern <= bytes; i += sizeof pattern) std::memcpy(byte + i, &pattern, sizeof pattern);
  for (; i < bytes; i++) byte[i] = static_cast<unsigned char>(pattern >> (i % 8 * 8));
}

void free_shared(Block* block) {
  std::free(block->dynamic);
  block->dynamic = nullptr;
  for (int i = 0; i < block->shared_arrays; i++) std::free(block->shared[i].memory);
  block->shared_arrays = 0;
}

// An identity and a stack for the n-th thread of a launch. Reuse orders the old thread before the new one and
// hides races between blocks, so there are many; each costs 0.3 to 2 ms, once a process.
[[maybe_unused]] void identify(Fiber* fiber, [[maybe_unused]] int64_t n) {
#if defined(EMULATOR_TSAN)
  constexpr int64_t identities = 4096;
  static struct {
    void* identity;
    char* stack;
    const Fiber* of;
  } known[identities];
  // A block that is held back still has those of long ago.
  const auto taken = [](int64_t i) {
    return known[i].of != nullptr && known[i].of->known == i && !known[i].of->exited;
  };
  while (taken(n % identities)) n++;
  auto& one = known[n % identities];
  one.of = fiber;
  fiber->known = n % identities;
  if (one.identity == nullptr) one = {__tsan_create_fiber(0), new_stack(), fiber};
  fiber->identity = one.identity;
  fiber->stack = one.stack;
  char name[64];
  std::snprintf(name, sizeof name, "block (%u,%u,%u) thread %d", fiber->block.x, fiber->block.y,
                fiber->block.z, fiber->warp * 32 + fiber->lane);
  __tsan_set_fiber_name(fiber->identity, name);
#else
  if (fiber->stack == nullptr) fiber->stack = new_stack();
#endif
}

void start(Block* block, Grid* grid, uint3 index, int64_t launched) {
  const dim3 size = grid->launch->shape.block;
  if (block->fibers == nullptr) block->fibers = new Fiber[max_threads]();
  if (block->warps == nullptr) block->warps = new Warp[max_threads / 32]();
  block->grid = grid;
  block->let_next = false;
  block->dynamic_bytes = grid->launch->shape.dynamic_shared;
  block->threads = block->alive = static_cast<int>(size.x * size.y * size.z);
  block->cluster->alive += block->threads;
  block->waiting = block->line = block->votes = 0;
  block->shared_bytes = block->dynamic_bytes;
  const int warps = (block->threads + 31) / 32;
  for (int w = 0; w < warps; w++) block->warps[w].open = block->warps[w].exited = 0;
  if (block->threads % 32 != 0) block->warps[warps - 1].exited = ~0u << block->threads % 32;
  free_shared(block);
  if (block->dynamic_bytes > 0) {
    if (posix_memalign(&block->dynamic, 128, block->dynamic_bytes) != 0) std::abort();
    fill_fresh(block->dynamic, block->dynamic_bytes);
  }
  for (int t = 0; t < block->threads; t++) {
    Fiber* const fiber = block->fibers + t;
    const unsigned u = static_cast<unsigned>(t);
    char* const stack = fiber->stack;
    [[maybe_unused]] const bool returned = fiber->exited;
    *fiber = Fiber();
    fiber->stack = stack;
    fiber->thread = {u % size.x, u / size.x % size.y, u / size.x / size.y};
    fiber->block = index;
    fiber->threads = size;
    fiber->blocks = grid->launch->shape.grid;
    fiber->lane = t % 32;
    fiber->warp = t / 32;
    fiber->of = block;
    fiber->waits_in = "its beginning";
    identify(fiber, launched + t);
#if defined(EMULATOR_ASAN)
    if (!returned) __asan_unpoison_memory_region(fiber->stack, stack_bytes);  // else its frames did
#endif
    void** top = reinterpret_cast<void**>(fiber->stack + stack_bytes);
    *--top = nullptr;  // ends a backtrace, and aligns the stack as a call would
    *--top = reinterpret_cast<void*>(&run_thread);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    fiber->stack_pointer = top;
    make_ready(fiber);
  }
}

// ---- device memory

struct Allocation {
  char* memory;
  size_t bytes;
};
std::vector<Allocation> allocations, pinned;
size_t allocated = 0;
int64_t allocations_until_failure = 0;
int64_t waits = 0;

// Outside kernels and copies the address sanitizer, or the system, stops whoever touches device memory.
void open(const Allocation& a, bool accessible) {
#if defined(EMULATOR_ASAN)
  accessible ? __asan_unpoison_memory_region(a.memory, a.bytes)
             : __asan_poison_memory_region(a.memory, a.bytes);
#elif defined(EMULATOR_PROTECT)
  mprotect(a.memory, a.bytes, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
#else
  (void)a, (void)accessible;
#endif
}
void* allocate(size_t bytes) {
#if defined(EMULATOR_PROTECT)
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
#else
  void* memory = nullptr;
  return posix_memalign(&memory, 256, bytes) == 0 ? memory : nullptr;
#endif
}
void give_back(const Allocation& a) {
#if defined(EMULATOR_PROTECT)
  munmap(a.memory, a.bytes);
#else
  std::free(a.memory);
#endif
}
bool holds(const std::vector<Allocation>& list, const void* address) {
  for (const Allocation& a : list) {
    if (address >= a.memory && address < a.memory + a.bytes) return true;
  }
  return false;
}
void open_all(bool accessible) {
  for (const Allocation& a : allocations) open(a, accessible);
}

// ---- launches

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

void count_let_next(Block* block) {
  if (block->let_next) return;
  block->let_next = true;
  block->grid->let_next++;
}

// A kernel, and those behind it that may begin before it has ended.
void run_launches(const std::vector<Launch>& launches) {
  unsigned most_threads = 0;
  for (const Launch& launch : launches) {
    const dim3 size = launch.shape.block;
    if (size.x * size.y * size.z > most_threads) most_threads = size.x * size.y * size.z;
  }
  unsigned capacity = 1;
  while (capacity < max_resident * most_threads + 1) capacity *= 2;
  static unsigned has_capacity = 0;
  if (capacity > has_capacity) {
    std::free(ready);
    ready = static_cast<Fiber**>(std::malloc(capacity * sizeof *ready));
    has_capacity = capacity;
  }
  ready_mask = has_capacity - 1;
  ready_head = ready_tail = 0;
  finished = nullptr;
  newest = nullptr;
  switches_left = options.switches;

  static uint64_t runs = 0;
  random_state = (options.seed + 0x9e3779b97f4a7c15ull * ++runs) | 1;
  for (int i = 0; i < 8; i++) random64();
  std::vector<Grid> grids(launches.size());
  for (size_t g = 0; g < grids.size(); g++) {
    prepare(&grids[g], launches[g], g > 0 ? &grids[g - 1] : nullptr, grids.size() == 1, static_cast<int>(g));
  }
  starves_before = grids.size() > 1 && random_below(2) == 0;
  temper = starves_before ? Temper::starve : static_cast<Temper>(random_below(3));
  const bool starve_block = !starves_before && grids[0].slots > 1 && random_below(4) == 0;
  starved_slot = starve_block ? static_cast<int>(random_below(static_cast<uint64_t>(grids[0].slots))) : -1;
  starved_warp = starve_block || starves_before ? -1 : static_cast<int>(random_below((most_threads + 31) / 32));

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

// A block may have all of a multiprocessor's but 1 KiB.
size_t most_shared() {
  return static_cast<size_t>(options.shared_per_multiprocessor) - 1024;
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

}  // namespace

// ---- called by kernels

int barrier(int line, bool counts, bool predicate) {
  Block* const block = self->of;
  const unsigned phase = block->phase & 1;
  if (block->waiting > 0 && block->line != line) {
    fail("__syncthreads in line %d while other threads of the block wait in line %d", line, block->line);
  }
  block->line = line;
  block->votes += counts && predicate ? 1 : 0;
  release(&block->order[phase]);
  if (++block->waiting == block->alive) {
    release_barrier(block);
    make_ready(self);
    switch_to(next_ready());
  } else {
    wait_in("__syncthreads");
  }
  self->fenced = false;
  acquire(&block->order[phase]);
  return block->voted[phase];
}

namespace {
void* shared_memory_of(Block* block, const void* place, size_t bytes) {
  for (int i = 0; i < block->shared_arrays; i++) {
    if (block->shared[i].place == place) return block->shared[i].memory;
  }
  if (block->shared_arrays == max_shared_arrays) fail("over %d shared arrays", max_shared_arrays);
  block->shared_bytes += bytes;
  if (block->shared_bytes - block->dynamic_bytes > shared_limit || block->shared_bytes > most_shared())
    fail("%zu bytes of shared memory, over 48 KiB", block->shared_bytes);
  ignore_accesses(true);
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes) != 0)
    std::abort();  // of exactly that size: red zones follow at once
  fill_fresh(memory, bytes);
  ignore_accesses(false);
  block->shared[block->shared_arrays++] = {place, memory, bytes};
  return memory;
}
}  // namespace

void cluster_barrier() {
  Cluster* const cluster = self->of->cluster;
  const unsigned phase = cluster->phase & 1;
  release(&cluster->order[phase]);
  if (++cluster->waiting == cluster->alive) {
    release_cluster(cluster);
    make_ready(self);
    switch_to(next_ready());
  } else {
    wait_in("a barrier of its cluster");
  }
  self->fenced = false;
  acquire(&cluster->order[phase]);
}

void let_next_begin() {
  if (self->of->let_next) return;
  count_let_next(self->of);
  make_ready(self);  // the host starts what may begin now
  switch_to(&host);
}

void wait_for_kernel_before() {
  self->waited = true;
  Grid* const before = self->of->grid->before;
  if (before == nullptr) return;
  if (before->ended < before->blocks) {
    self->waiter = before->waiting;
    before->waiting = self;
    wait_in("waiting for the kernel before");
  }
  acquire(&before->ends);
}

void* cluster_shared(void* own, int rank) {
  Block* const block = self->of;
  const int size = block->grid->launch->shape.cluster;
  Block* const other = blocks + block->slot / size * size + rank;
  if (rank < 0 || rank >= size) fail("block %d of a cluster of %d", rank, size);
  if (other->alive == 0) fail("shared memory of block %d of the cluster, which has ended", rank);
  const auto offset = [&](const void* memory) {
    return static_cast<size_t>(static_cast<char*>(own) - static_cast<const char*>(memory));
  };
  if (offset(block->dynamic) < block->dynamic_bytes)
    return static_cast<char*>(other->dynamic) + offset(block->dynamic);
  for (int i = 0; i < block->shared_arrays; i++) {
    const auto& array = block->shared[i];
    if (offset(array.memory) < array.bytes)
      return static_cast<char*>(shared_memory_of(other, array.place, array.bytes)) + offset(array.memory);
  }
  fail("%p is not in shared memory", own);
}

// 2^x, off by up to 2^-22 of itself, as the instruction may be; denormal numbers are 0.
float exp2_approximate(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const float off = static_cast<float>(static_cast<int32_t>(bits * 0x9e3779b9u)) * 0x1p-31f;
  const float power =
      static_cast<float>(std::exp2(static_cast<double>(x)) * (1 + static_cast<double>(off) * 0x1p-22));
  return power < 0x1p-126f ? 0.0f : power;
}

namespace {

Meeting* meet(WarpOp op, unsigned mask, uint64_t value) {
  Warp& warp = self->of->warps[self->warp];
  const unsigned me = 1u << self->lane;
  if ((mask & me) == 0) fail("a warp operation whose mask %08x lacks its own lane %d", mask, self->lane);
  if ((mask & warp.exited) != 0) {
    fail("a warp operation whose mask %08x names lanes that have exited or do not exist: %08x", mask,
         mask & warp.exited);
  }
  Meeting* meeting = nullptr;
  for (unsigned open = warp.open; open != 0 && meeting == nullptr; open &= open - 1) {
    Meeting* const other = warp.meeting + __builtin_ctz(open);
    if (!other->complete && other->mask == mask) meeting = other;
  }
  if (meeting != nullptr && meeting->op != op) fail("lanes of one warp meet in different operations");
  if (meeting == nullptr) {
    if (warp.open == ~0u) fail("over 32 warp operations at once");
    const int i = __builtin_ctz(~warp.open);
    warp.open |= 1u << i;
    meeting = warp.meeting + i;
    meeting->op = op;
    meeting->mask = mask;
    meeting->arrived = meeting->left = 0;
    meeting->complete = false;
  }
  meeting->arrived |= me;
  meeting->value[self->lane] = value;
  meeting->fiber[self->lane] = self;
  if (op == WarpOp::sync) release(&meeting->result);  // shuffles and votes order no memory
  if (meeting->arrived != mask) {
    wait_in("a warp operation");
  } else {
    meeting->complete = true;
    meeting->result = 0;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      if (meeting->value[lane] != 0) meeting->result |= uint64_t{1} << lane;
      if (meeting->fiber[lane] != self) make_ready(meeting->fiber[lane]);
    }
    make_ready(self);
    switch_to(next_ready());
  }
  if (op == WarpOp::sync) acquire(&meeting->result);
  return meeting;
}

void leave(Meeting* meeting) {
  Warp& warp = self->of->warps[self->warp];
  meeting->left |= 1u << self->lane;
  if (meeting->left == meeting->mask) warp.open &= ~(1u << (meeting - warp.meeting));
}

}  // namespace

uint64_t warp_shuffle(unsigned mask, uint64_t value, int source) {
  Meeting* const meeting = meet(WarpOp::shuffle, mask, value);
  if ((mask >> source & 1) == 0) fail("a shuffle from lane %d, which the mask %08x lacks", source, mask);
  const uint64_t result = meeting->value[source];
  leave(meeting);
  return result;
}

uint64_t warp_vote(WarpOp op, unsigned mask, uint64_t value) {
  Meeting* const meeting = meet(op, mask, value);
  uint64_t result = meeting->result;
  if (op == WarpOp::match) {
    result = 0;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
      if (meeting->value[__builtin_ctz(lanes)] == value) result |= lanes & -lanes;
    }
  }
  leave(meeting);
  return result;
}

// What CUDA promises of relaxed atomics and fences: an atomic after a fence publishes at its address; a fence
// after an atomic takes in what that address had. Without the fence on either side nothing is ordered.
void before_atomic(const void* address, size_t size) {
  if (current == nullptr) return;
  if (reinterpret_cast<uintptr_t>(address) % size != 0)
    fail("an atomic operation on %p, which is not aligned", address);
  if (random_below(100) < static_cast<uint64_t>(options.preempt_percent)) yield();
  if (self->fenced) release(const_cast<void*>(address));
  self->atomic[self->atomics++ % 8] = address;
}

void fence() {
  for (unsigned i = 0; i < 8 && i < self->atomics; i++) acquire(const_cast<void*>(self->atomic[i]));
  self->fenced = true;
  if (random_below(100) < static_cast<uint64_t>(options.preempt_percent)) yield();
}

void* shared_memory(const void* place, size_t bytes) {
  return shared_memory_of(self->of, place, bytes);
}

void* dynamic_shared_memory() {
  if (self->of->dynamic == nullptr) fail("the launch gave no dynamic shared memory");
  return self->of->dynamic;
}

// ---- streams: what is queued runs when something waits for it

namespace {

// What is queued: a launch, or all else.
struct Work {
  std::function<void()> run;
  std::shared_ptr<const Launch> launch;
};
struct Graph {
  std::vector<Work> work;
};
struct Stream {
  std::deque<Work> queue;
  int64_t queued = 0, done = 0;
  Graph* capturing = nullptr;
};
struct Event {
  Stream* stream = nullptr;
  int64_t after = 0;
};

std::vector<std::unique_ptr<Stream>> streams;  // never freed: events refer to them
Stream default_stream;
Stream* stream_of(cudaStream_t stream) {
  return stream == nullptr ? &default_stream : reinterpret_cast<Stream*>(stream);
}
cudaError_t last_error = cudaSuccess;

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
cudaError_t usable() {
  return note(failed ? cudaErrorLaunchFailure : cudaSuccess);
}

void advance(Stream* stream, int64_t until) {
  while (!failed && stream->done < until) {
    std::vector<Launch> launches;
    const auto follows = [&] { return stream->queue.front().launch != nullptr && stream->queue.front().launch->shape.follows; };
    Work work;
    do {
      work = std::move(stream->queue.front());
      stream->queue.pop_front();
      stream->done++;
      if (work.launch != nullptr) launches.push_back(*work.launch);
    } while (work.launch != nullptr && stream->done < until && follows());
    launches.empty() ? work.run() : run_launches(launches);
  }
}
cudaError_t wait_for(Stream* stream) {
  waits++;
  if (stream->capturing != nullptr) return note(cudaErrorStreamCaptureUnsupported);
  advance(stream, stream->queued);
  return usable();
}
bool capturing() {
  for (const auto& stream : streams) {
    if (stream->capturing != nullptr) return true;
  }
  return false;
}
void wait_for_all() {
  waits++;
  advance(&default_stream, default_stream.queued);
  for (const auto& stream : streams) advance(stream.get(), stream->queued);
}
cudaError_t enqueue(cudaStream_t to, Work work) {
  if (cudaError_t error = usable()) return error;
  Stream* const stream = stream_of(to);
  if (stream->capturing != nullptr) {
    stream->capturing->work.push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
    stream->queued++;
  }
  return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t to, std::function<void()> run) {
  return enqueue(to, Work{std::move(run), nullptr});
}

void with_device_memory(const std::function<void()>& work) {
  open_all(true);
  work();
  open_all(false);
}

}  // namespace

cudaError_t allow_dynamic_shared(const void* function, size_t bytes) {
  const Alone alone;
  size_t& allowed = allowed_dynamic[{function, options.shared_per_multiprocessor}];
  // CUDA would take less; but another thread may be about to launch with what was allowed before.
  if (bytes > most_shared() || bytes < allowed) return note(cudaErrorInvalidValue);
  allowed = bytes;
  return cudaSuccess;
}

cudaError_t queue_launch(const void* function, Call call, void* arguments, void (*destroy)(void*),
                         const Shape& shape, cudaStream_t stream) {
  const Alone alone;
  auto launch = std::make_shared<const Launch>(Launch{call, std::shared_ptr<void>(arguments, destroy), shape});
  const Stream* const to = stream_of(stream);
  const Work* const before = to->capturing != nullptr ? (to->capturing->work.empty() ? nullptr : &to->capturing->work.back())
                             : to->queue.empty()      ? nullptr
                                                      : &to->queue.back();
  const char* reason = impossible(function, shape);
  if (reason == nullptr && shape.follows && before != nullptr && before->launch == nullptr)
    reason = "a kernel that follows what is no kernel";
  if (reason != nullptr) {
    std::snprintf(report, sizeof report, "%s", reason);
    return note(cudaErrorInvalidConfiguration);
  }
  return enqueue(stream, Work{nullptr, std::move(launch)});
}

const char* failure() {
  return report;
}
void reset() {
  failed = false;
  report[0] = 0;
  last_error = cudaSuccess;
  allowed_dynamic.clear();
  default_stream.queue.clear();
  default_stream.done = default_stream.queued;
  for (const auto& stream : streams) {
    stream->queue.clear();
    stream->done = stream->queued;
  }
}
void fail_allocation(int64_t n) {
  allocations_until_failure = n;
}
size_t allocated_bytes() {
  return allocated;
}
int64_t synchronizations() {
  return waits;
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaGetLastError() {
  const Alone alone;
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return failed ? cudaErrorLaunchFailure : error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? report : "emulated error";
}
const char* cudaGetErrorName(cudaError_t) {
  return "emulated";
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  const Alone alone;
  return *version = 13000, cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  const Alone alone;
  return *version = options.driver, cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  const Alone alone;
  return *count = 1, cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int device) {
  const Alone alone;
  std::snprintf(id, static_cast<size_t>(bytes), "0000:0E:00.0");
  return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
  const Alone alone;
  return *device = 0, cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const Alone alone;
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? options.major
           : attribute == cudaDevAttrMultiProcessorCount    ? options.multiprocessors
           : attribute == cudaDevAttrComputeCapabilityMinor ? options.minor
                                                            : options.shared_per_multiprocessor;
  return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaSetDevice(int device) {
  const Alone alone;
  return note(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const Alone alone;
  if (device != 0) return note(cudaErrorInvalidDevice);
  *properties = {"emulated on the CPU", size_t{1} << 34, 9, 0, 4};
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const Alone alone;
  *memory = nullptr;
  if (cudaError_t error = usable()) return error;
  if (capturing()) return note(cudaErrorStreamCaptureUnsupported);
  if (allocations_until_failure > 0 && --allocations_until_failure == 0)
    return note(cudaErrorMemoryAllocation);
  if (bytes == 0) return cudaSuccess;
  if ((*memory = allocate(bytes)) == nullptr) return note(cudaErrorMemoryAllocation);
  fill_fresh(*memory, bytes);
  allocations.push_back({static_cast<char*>(*memory), bytes});
  allocated += bytes;
  open(allocations.back(), false);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const Alone alone;
  if (memory == nullptr) return usable();
  if (capturing()) return note(cudaErrorStreamCaptureUnsupported);
  wait_for_all();
  for (size_t i = 0; i < allocations.size(); i++) {
    if (allocations[i].memory != memory) continue;
    open(allocations[i], true);
    allocated -= allocations[i].bytes;
    give_back(allocations[i]);
    allocations.erase(allocations.begin() + static_cast<int64_t>(i));
    return usable();
  }
  return note(cudaErrorInvalidValue);
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  const Alone alone;
  *memory = bytes == 0 ? nullptr : std::malloc(bytes);
  if (*memory != nullptr) pinned.push_back({static_cast<char*>(*memory), bytes});
  return usable();
}
cudaError_t cudaFreeHost(void* memory) {
  const Alone alone;
  for (size_t i = 0; i < pinned.size(); i++) {
    if (pinned[i].memory == memory) {
      pinned.erase(pinned.begin() + static_cast<int64_t>(i));
      break;
    }
  }
  std::free(memory);
  return usable();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const Alone alone;
  if (bytes > 0 && stream_of(stream)->capturing == nullptr && holds(allocations, to) && !holds(allocations, from) &&
      !holds(pinned, from)) {
    // Of pageable memory CUDA has taken the bytes when the call returns; pinned memory is read when it comes to it.
    const char* const bytes_now = static_cast<const char*>(from);
    const std::vector<char> staged(bytes_now, bytes_now + bytes);
    return enqueue(stream, [=] { with_device_memory([&] { std::memcpy(to, staged.data(), bytes); }); });
  }
  return enqueue(stream, [=] {
    with_device_memory([=] {
      if (bytes > 0) std::memcpy(to, from, bytes);
    });
  });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const Alone alone;
  return enqueue(stream, [=] {
    with_device_memory([=] {
      if (bytes > 0) std::memset(to, value, bytes);
    });
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Alone alone;
  streams.push_back(std::make_unique<Stream>());
  *stream = reinterpret_cast<cudaStream_t>(streams.back().get());
  return usable();
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Alone alone;
  advance(stream_of(stream), stream_of(stream)->queued);
  return usable();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Alone alone;
  return wait_for(stream_of(stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Alone alone;
  const Event recorded = *reinterpret_cast<Event*>(event);
  if (recorded.stream == nullptr) return usable();
  return enqueue(stream, [recorded] { advance(recorded.stream, recorded.after); });
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Alone alone;
  if (stream == nullptr || stream_of(stream)->capturing != nullptr)
    return note(cudaErrorStreamCaptureUnsupported);
  stream_of(stream)->capturing = new Graph;
  return usable();
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Alone alone;
  *status =
      stream_of(stream)->capturing == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return usable();
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Alone alone;
  *graph = reinterpret_cast<cudaGraph_t>(stream_of(stream)->capturing);
  stream_of(stream)->capturing = nullptr;
  return usable();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  const Alone alone;
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return usable();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Alone alone;
  for (const Work& work : reinterpret_cast<Graph*>(executable)->work) {
    if (cudaError_t error = enqueue(stream, work)) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Alone alone;
  delete reinterpret_cast<Graph*>(executable);
  return usable();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Alone alone;
  delete reinterpret_cast<Graph*>(graph);
  return usable();
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  const Alone alone;
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return usable();
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Alone alone;
  delete reinterpret_cast<Event*>(event);
  return usable();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Alone alone;
  Stream* const on = stream_of(stream);
  if (on->capturing != nullptr) return note(cudaErrorStreamCaptureUnsupported);
  *reinterpret_cast<Event*>(event) = {on, on->queued};
  return usable();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Alone alone;
  const Event* const recorded = reinterpret_cast<Event*>(event);
  waits++;
  if (recorded->stream != nullptr) advance(recorded->stream, recorded->after);
  return usable();
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  const Alone alone;
  *milliseconds = 1;  // there is no time here
  return usable();
}
