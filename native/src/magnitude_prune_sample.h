// Which weights magnitude_prune samples: lines of 16 neighbours, one at a pseudo-random place in each of equal stretches
// of the flat list. Nothing but sizes goes in, so the same list is always sampled alike.
#pragma once
#include <cstdint>

namespace esp {

// A multiple of 64 that fits `capacity` keys, capacity >= 65536.
inline int64_t prune_sample_lines(int64_t elements, int64_t capacity) {
  int64_t lines = elements / 4096;
  lines = lines < 512 ? 512 : lines > 16384 ? 16384 : lines;
  if (lines * 16 > capacity) lines = capacity / 16;
  return lines / 64 * 64;
}

// The flat element that a line holds; the line starts at the multiple of 16 before it in its tensor.
inline int64_t prune_sample_position(int64_t elements, int64_t lines, int64_t line) {
  const int64_t stretch = elements / lines;  // >= 1
  uint64_t mixed = (static_cast<uint64_t>(line) + 1) * 0x9e3779b97f4a7c15u;
  mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
  mixed ^= mixed >> 31;
  return line * stretch + static_cast<int64_t>(mixed % static_cast<uint64_t>(stretch));
}

}  // namespace esp
