// What the sanitizers are told. The emulator is compiled WITHOUT -fsanitize, with EMULATOR_ASAN or EMULATOR_TSAN where the
// rest of the program is sanitized: what it does for itself must not look like accesses of the CUDA thread that it does it
// for. EMULATOR_PROTECT has the system stop who touches device memory outside kernels and copies, as ASAN does.
#pragma once
#include <cstddef>

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

namespace emulator {

inline void acquire([[maybe_unused]] void* address) {
#if defined(EMULATOR_TSAN)
  __tsan_acquire(address);
#endif
}
inline void release([[maybe_unused]] void* address) {
#if defined(EMULATOR_TSAN)
  __tsan_release(address);
#endif
}
// Accesses between the two calls are ours: malloc and memset are watched even here.
inline void ignore_accesses([[maybe_unused]] bool on) {
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

}  // namespace emulator
