// Who runs next: random numbers of a seed, and the fibers that can run.
#pragma once
#include <cstdint>

namespace emulator {

struct Fiber;
struct Grid;

uint64_t random64();
uint64_t random_below(uint64_t bound);

extern const Grid* newest;  // of the kernels that have begun

// Nobody is ready, and random numbers begin anew. No block that is to run has more threads than this.
void begin_schedule(unsigned most_threads);
// Who is held back from now on: of one kernel, whose blocks have so many slots, or of several that follow one another.
void draw_temper(bool several, int slots, unsigned most_threads);
void make_ready(Fiber* fiber);
// As if it had waited longest, or the last where fibers run in their order: "newest first" must not choose a spinning thread
// for ever.
void make_ready_again(Fiber* fiber);
// nullptr: nobody can run.
Fiber* next_ready();
// False where a launch has switched as often as it may.
bool may_switch();

}  // namespace emulator
