// What the lanes of a warp do together.
#include "fibers.h"
#include "sanitizers.h"
#include "schedule.h"

namespace emulator {
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

}  // namespace emulator
