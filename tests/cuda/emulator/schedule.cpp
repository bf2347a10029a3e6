#include "schedule.h"

#include <cstdlib>
#include <utility>

#include "emulator.h"
#include "fibers.h"

namespace emulator {

const Grid* newest = nullptr;

namespace {

uint64_t random_state = 1;

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

bool starved(const Fiber* fiber) {
  return fiber->warp == starved_warp || fiber->of->slot == starved_slot ||
         (starves_before && fiber->of->grid != newest);
}

}  // namespace

uint64_t random64() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state * 0x2545f4914f6cdd1dull >> 16;
}
uint64_t random_below(uint64_t bound) {
  return random64() % bound;
}

void begin_schedule(unsigned most_threads) {
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
  newest = nullptr;
  switches_left = options.switches;

  static uint64_t runs = 0;
  random_state = (options.seed + 0x9e3779b97f4a7c15ull * ++runs) | 1;
  for (int i = 0; i < 8; i++) random64();
}

void draw_temper(bool several, int slots, unsigned most_threads) {
  starves_before = several && random_below(2) == 0;
  temper = starves_before ? Temper::starve : static_cast<Temper>(random_below(3));
  const bool starve_block = !starves_before && slots > 1 && random_below(4) == 0;
  starved_slot = starve_block ? static_cast<int>(random_below(static_cast<uint64_t>(slots))) : -1;
  starved_warp = starve_block || starves_before ? -1 : static_cast<int>(random_below((most_threads + 31) / 32));
}

void make_ready(Fiber* fiber) {
  ready[ready_tail++ & ready_mask] = fiber;
}

void make_ready_again(Fiber* fiber) {
  if (options.order == Order::forward) {
    make_ready(fiber);
  } else {
    ready[--ready_head & ready_mask] = fiber;
  }
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

bool may_switch() {
  return --switches_left > 0;
}

}  // namespace emulator
