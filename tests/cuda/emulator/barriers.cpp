// What orders the memory of threads: barriers of blocks and clusters, the end of the kernel before, atomics with fences.
#include "emulator.h"
#include "fibers.h"
#include "sanitizers.h"
#include "schedule.h"

namespace emulator {

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

void count_let_next(Block* block) {
  if (block->let_next) return;
  block->let_next = true;
  block->grid->let_next++;
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

}  // namespace emulator
