// The few lines that the native tests need: CHECK counts, finish() reports and gives the exit status.
#pragma once
#include <cstdio>

inline int checks_passed = 0, checks_failed = 0;

#define CHECK(condition)                                               \
  do {                                                                 \
    if (condition) {                                                   \
      checks_passed++;                                                 \
    } else {                                                           \
      checks_failed++;                                                 \
      std::printf("FAILED %s:%d %s\n", __FILE__, __LINE__, #condition); \
    }                                                                  \
  } while (0)

inline int finish() {
  std::printf("%d passed, %d failed\n", checks_passed, checks_failed);
  return checks_failed == 0 && checks_passed > 0 ? 0 : 1;
}
