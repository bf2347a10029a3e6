// The traffic of the operations without their arithmetic. 64 bytes a turn, prefetch and stores as in the kernels.
#include "bandwidth_kernel.h"

#include "simd/simd.h"

namespace {

template <bool streaming>
ESP_INLINE void put(float* p, f32x16 v) {
  if (streaming) {
    ::stream(p, v);
  } else {
    store(p, v);
  }
}

void read(const float* a, int64_t n) {
  f32x16 s0 = set1(0.0f), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int line = 0; line < 64; line += 16) prefetch(a + i + line);
    s0 = max(s0, load(a + i));
    s1 = max(s1, load(a + i + 16));
    s2 = max(s2, load(a + i + 32));
    s3 = max(s3, load(a + i + 48));
  }
  for (; i < n; i += 16) s0 = max(s0, load(a + i));
  float sink[16];
  store(sink, max(max(s0, s1), max(s2, s3)));
  __asm__ volatile("" : : "r"(sink) : "memory");  // the sum counts as used
}

template <bool streaming>
void copy(const float* a, float* b, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    prefetch(a + i);
    put<streaming>(b + i, load(a + i));
  }
}

// `one` comes from outside, or the compiler would drop the multiplication and then the store.
void update(float* a, int64_t n, float factor) {
  const f32x16 one = set1(factor);
  for (int64_t i = 0; i < n; i += 16) {
    prefetch(a + i);
    store(a + i, load(a + i) * one);
  }
}

template <bool working_copy, bool streaming>
void step(float* a, float* b, const float* c, float* d, int64_t n) {
  const f32x16 zero = set1(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    prefetch(a + i);
    prefetch(b + i);
    prefetch(c + i);
    const f32x16 g = load(c + i) * zero;
    const f32x16 w = load(a + i) + g;
    store(b + i, load(b + i) + g);
    store(a + i, w);
    if (working_copy) put<streaming>(d + i, w);
  }
}

void traffic(int32_t kind, float* a, float* b, float* c, float* d, int64_t n, float one, bool streaming) {
  switch (kind) {
    case ESP_TRAFFIC_READ:
      return read(a, n);
    case ESP_TRAFFIC_COPY:
      return streaming ? copy<true>(a, b, n) : copy<false>(a, b, n);
    case ESP_TRAFFIC_UPDATE:
      return update(a, n, one);
    case ESP_TRAFFIC_STEP:
      return step<false, false>(a, b, c, d, n);
    default:
      return streaming ? step<true, true>(a, b, c, d, n) : step<true, false>(a, b, c, d, n);
  }
}

void traffic_fenced(int32_t kind, float* a, float* b, float* c, float* d, int64_t n, float one, bool streaming) {
  traffic(kind, a, b, c, d, n, one, streaming);
  if (streaming) fence();
}

}  // namespace

namespace esp {
extern const BandwidthKernels ESP_VARIANT(bandwidth);
const BandwidthKernels ESP_VARIANT(bandwidth) = {traffic_fenced};
}  // namespace esp
