// What the tests of the CUDA operations share: device memory, plans, graphs, seeds. The same tests run on the emulator and,
// built against the CUDA library (ESP_ON_GPU), on a GPU.
#pragma once
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../native/check.h"
#include "espalier/cuda/plan.h"
#include "espalier/device.h"
#if !defined(ESP_ON_GPU)
#include "emulator.h"
#endif

namespace esp_test {

struct Setting {
  uint64_t seed;  // of data and, on the emulator, of the schedule
  bool small;     // for the thread sanitizer, which is a hundred times slower
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t bits() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = (state_ ^ state_ >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  float uniform() { return static_cast<float>(static_cast<int32_t>(bits() >> 32)) * 0x1p-31f; }  // -1 to 1

 private:
  uint64_t state_;
};

// Device memory of exactly `count` elements, which start `shift` elements past an aligned address.
template <class T>
class Device {
 public:
  explicit Device(int64_t count, int64_t shift = 0) : count_(count), shift_(shift) {
    CHECK(esp_cuda_allocate((count + shift) * static_cast<int64_t>(sizeof(T)), &memory_) == ESP_OK);
  }
  explicit Device(const std::vector<T>& values, int64_t shift = 0) : Device(static_cast<int64_t>(values.size()), shift) {
    set(values);
  }
  Device(Device&& other) noexcept : memory_(other.memory_), count_(other.count_), shift_(other.shift_) {
    other.memory_ = nullptr;
  }
  Device& operator=(Device&&) = delete;
  ~Device() { esp_cuda_release(memory_); }

  T* get() const { return count_ == 0 ? nullptr : static_cast<T*>(memory_) + shift_; }
  int64_t count() const { return count_; }
  void set(const std::vector<T>& values) const {
    CHECK(esp_cuda_copy(get(), values.data(), count_ * static_cast<int64_t>(sizeof(T)), nullptr) == ESP_OK);
    CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  }
  void zero() const {
    CHECK(esp_cuda_fill_zero(get(), count_ * static_cast<int64_t>(sizeof(T)), nullptr) == ESP_OK);
    CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  }
  std::vector<T> values() const {
    std::vector<T> result(static_cast<size_t>(count_));
    CHECK(esp_cuda_copy(result.data(), get(), count_ * static_cast<int64_t>(sizeof(T)), nullptr) == ESP_OK);
    CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
    return result;
  }

 private:
  void* memory_ = nullptr;
  int64_t count_, shift_;
};

#if !defined(ESP_ON_GPU)
// Memory of billions of elements, zero until written, of which a test touches little: for indices that need 64 bits.
template <class T>
class Sparse {
 public:
  explicit Sparse(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {
    void* const memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    memory_ = memory == MAP_FAILED ? nullptr : static_cast<T*>(memory);
  }
  Sparse(const Sparse&) = delete;
  ~Sparse() { munmap(memory_, bytes_); }
  T* get() const { return memory_; }

 private:
  size_t bytes_;
  T* memory_;
};
#endif

class Stream {
 public:
  Stream() { CHECK(esp_cuda_stream_create(&stream_) == ESP_OK); }
  Stream(const Stream&) = delete;
  ~Stream() { esp_cuda_stream_destroy(stream_); }
  void* get() const { return stream_; }
  bool wait() const { return esp_cuda_stream_synchronize(stream_) == ESP_OK; }

 private:
  void* stream_ = nullptr;
};

// A plan with its table and a zeroed workspace on the device. make(plan, table) is the operation's plan function.
class Planned {
 public:
  template <class Make>
  explicit Planned(Make&& make) : plan(planned(make)), table_(plan.table_bytes), workspace_(plan.workspace_bytes) {
    std::vector<char> bytes(static_cast<size_t>(plan.table_bytes));
    CHECK(make(&plan, static_cast<void*>(bytes.data())) == ESP_OK);
    table_.set(bytes);
    workspace_.zero();
  }
  const void* table() const { return table_.get(); }
  void* workspace() const { return workspace_.get(); }

 private:
  template <class Make>
  static esp_cuda_plan planned(Make&& make) {
    esp_cuda_plan plan = {};
    CHECK(make(&plan, static_cast<void*>(nullptr)) == ESP_OK);
    return plan;
  }

 public:
  esp_cuda_plan plan;

 private:
  Device<char> table_, workspace_;
};

// Queues what `work` queues as a graph, `times` over; `work` must neither wait nor allocate.
template <class Work>
bool run_captured(const Stream& stream, int times, Work&& work) {
  const cudaStream_t raw = static_cast<cudaStream_t>(stream.get());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  bool right = cudaStreamBeginCapture(raw, cudaStreamCaptureModeGlobal) == cudaSuccess;
  right = right && work() == ESP_OK;
  right = cudaStreamEndCapture(raw, &graph) == cudaSuccess && right;
  right = right && cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess;
  for (int i = 0; right && i < times; i++) right = cudaGraphLaunch(executable, raw) == cudaSuccess;
  right = stream.wait() && right;
  if (executable != nullptr) cudaGraphExecDestroy(executable);
  if (graph != nullptr) cudaGraphDestroy(graph);
  return right;
}

// [--seeds N] [--seed FIRST] [--small]: runs test(setting) for each seed.
template <class Test>
int run_tests(int argc, char** argv, Test&& test) {
  uint64_t first = 1, seeds = 1;
  bool small = false;
  for (int i = 1; i < argc; i++) {
    if (std::strcmp(argv[i], "--small") == 0) {
      small = true;
    } else if (i + 1 < argc && std::strcmp(argv[i], "--seeds") == 0) {
      seeds = std::strtoull(argv[++i], nullptr, 10);
    } else if (i + 1 < argc && std::strcmp(argv[i], "--seed") == 0) {
      first = std::strtoull(argv[++i], nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: %s [--seeds N] [--seed FIRST] [--small]\n", argv[0]);
      return 2;
    }
  }
  int32_t devices = 0;
  if (esp_cuda_device_count(&devices) != ESP_OK) {
    std::printf("skipped: %s\n", esp_cuda_last_error());
    return 77;
  }
  for (uint64_t seed = first; seed < first + seeds; seed++) {
#if !defined(ESP_ON_GPU)
    emulator::options = {};
    emulator::options.seed = seed;
    emulator::options.order = seed % 10 == 1   ? emulator::Order::forward
                              : seed % 10 == 2 ? emulator::Order::backward
                                               : emulator::Order::random;
    emulator::options.resident = 1 + static_cast<int>(seed % 4);
#endif
    const int failed = checks_failed;
    test(Setting{seed, small});
    if (checks_failed > failed) std::printf("FAILED with --seed %llu\n", static_cast<unsigned long long>(seed));
  }
  std::printf("seeds %llu to %llu: ", static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first + seeds - 1));
  return finish();
}

inline int64_t size_of(esp_dtype dtype) {
  return dtype == ESP_F32 ? 4 : 2;
}

/** Writes an element, its value cut to the bits of the type. */
inline void put(std::vector<uint8_t>& bytes, int64_t i, esp_dtype dtype, float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  if (dtype == ESP_F32) {
    std::memcpy(bytes.data() + i * 4, &word, 4);
    return;
  }
  uint16_t half = static_cast<uint16_t>(word >> 16);
  if (dtype == ESP_F16)
    half = static_cast<uint16_t>((half & 0x8000) | (x != x          ? 0x7e00
                                                    : std::isinf(x) ? 0x7c00
                                                                    : word >> 13 & 0x3bff));
  std::memcpy(bytes.data() + i * 2, &half, 2);
}

}  // namespace esp_test
