// The work of an operation over a list of tensors, cut into parts: a list for each kernel, one behind the
// other in the table. Plain C++, for plans; kernels are given the parts.
#pragma once
#include <cstdint>

namespace esp {

// A piece of a tensor's work; what piece `index` is depends on the list that the part is in.
struct Part {
  int32_t tensor, index;
};

// Counts the parts of all tensors, then writes them.
template <int lists>
class PartLists {
 public:
  // `parts` of the next tensor, by list. False where a list has come to more than `most`.
  bool count(const int64_t (&parts)[lists], int64_t most) {
    bool fits = true;
    for (int list = 0; list < lists; list++) {
      lengths_[list] += parts[list];
      all_ += parts[list];
      fits = fits && lengths_[list] <= most;
    }
    return fits;
  }
  // The length of a list.
  int64_t operator[](int list) const { return lengths_[list]; }
  int64_t bytes() const { return all_ * static_cast<int64_t>(sizeof(Part)); }

  // After all are counted: where they go.
  void begin(Part* table) {
    for (int list = 0; list < lists; list++) {
      next_[list] = table;
      table += lengths_[list];
    }
  }
  // Of each tensor, in order.
  void write(int64_t tensor, const int64_t (&parts)[lists]) {
    for (int list = 0; list < lists; list++) {
      for (int32_t index = 0; index < parts[list]; index++)
        *next_[list]++ = {static_cast<int32_t>(tensor), index};
    }
  }

 private:
  int64_t lengths_[lists] = {}, all_ = 0;
  Part* next_[lists] = {};
};

}  // namespace esp
