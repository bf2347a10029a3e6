#include "fibers.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include <sys/mman.h>

#include "emulator.h"
#include "memory.h"
#include "sanitizers.h"
#include "schedule.h"

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

Thread* current = nullptr;
Block blocks[max_resident];
Fiber host, *self = &host;
Block* finished = nullptr;
char launch_begins, launch_ends;
int64_t identities = 0;

char report[1024];
bool failed = false;

namespace {

#if defined(EMULATOR_ASAN)
constexpr size_t stack_bytes = 256 * 1024;
#else
constexpr size_t stack_bytes = 64 * 1024;
#endif

[[maybe_unused]] const void* host_stack = nullptr;
[[maybe_unused]] size_t host_stack_bytes = 0;

}  // namespace

void switch_to(Fiber* to, [[maybe_unused]] bool for_ever) {
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
  if (!may_switch()) fail("no end in sight: something spins for ever");
  make_ready_again(self);
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

namespace {

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

// An identity and a stack for the n-th thread of a launch. Reuse orders the old thread before the new one and
// hides races between blocks, so there are many; each costs 0.3 to 4 ms and 0.8 MB, once a process.
[[maybe_unused]] void identify(Fiber* fiber, [[maybe_unused]] int64_t n) {
#if defined(EMULATOR_TSAN)
  static struct {
    void* identity;
    char* stack;
    const Fiber* of;
  } known[most_identities];
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

}  // namespace

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

}  // namespace emulator
