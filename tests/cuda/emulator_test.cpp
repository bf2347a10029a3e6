// Does the emulator do what CUDA promises, and does it notice what CUDA forbids? Small kernels, in every
// order.
#include "emulator.h"

#include <functional>
#include <string>

#include "device_test.h"
#include "kernel.cuh"

namespace {

using namespace esp_test;

template <class... P, class... A>
bool run(void (*kernel)(P...), dim3 grid, dim3 block, A... arguments) {
  return emulator::launch(kernel, {grid, block, 0, 1}, nullptr, arguments...) == cudaSuccess &&
         cudaStreamSynchronize(nullptr) == cudaSuccess;
}

__global__ void every_thread_once(int* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  atomicAdd(&out[block * blockDim.x * blockDim.y * blockDim.z + thread],
            static_cast<int>(1 + block * 1000 + thread));
}
__global__ void shuffle(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  int* const mine = out + t * 12;
  mine[0] = __shfl_sync(~0u, t, 3);
  mine[1] = __shfl_sync(~0u, t, 9, 8);
  mine[2] = __shfl_up_sync(~0u, t, 2);
  mine[3] = __shfl_up_sync(~0u, t, 3, 8);
  mine[4] = __shfl_down_sync(~0u, t, 5);
  mine[5] = __shfl_down_sync(~0u, t, 1, 4);
  mine[6] = __shfl_xor_sync(~0u, t, 21);
  mine[7] = __shfl_xor_sync(~0u, t, 9, 8);
  mine[8] = static_cast<int>(__ballot_sync(~0u, t % 3 == 0));
  mine[9] = __any_sync(~0u, t == 40);
  mine[10] = __all_sync(~0u, t < 32);
  mine[11] = static_cast<int>(__match_any_sync(~0u, t % 5));
}
// Each block of a cluster reads what its neighbours wrote, in both kinds of shared memory.
template <bool waits>
__global__ void look_around(unsigned* out, int size) {
  ESP_SHARED(unsigned, own, [64]);
  ESP_DYNAMIC_SHARED(unsigned, more);
  const unsigned thread = threadIdx.x, block = blockIdx.x;
  own[thread] = block * 100 + thread;
  more[thread] = block;
  if (waits) esp::cluster_barrier();
  unsigned sum = 0;
  for (int rank = 0; rank < size; rank++)
    sum += *esp::cluster_shared(own + 63 - thread, rank) + *esp::cluster_shared(more + thread, rank);
  out[block * 64 + thread] = sum;
  esp::cluster_barrier();
}
[[maybe_unused]] __global__ void look_after_the_end(int* out) {
  ESP_SHARED(int, own, [1]);
  if (blockIdx.x % 2 == 1) return;
  esp::cluster_barrier();  // threads that have exited do not count
  out[0] = *esp::cluster_shared(own, 1);
}
__global__ void fill_dynamic(char* out, int bytes) {
  ESP_DYNAMIC_SHARED(char, own);
  ESP_SHARED(int, beside, [64]);  // counts too
  beside[bytes % 64] = 7;
  own[bytes - 1] = 7;
  out[0] = own[bytes - 1];
}
bool looks_around(void (*kernel)(unsigned*, int), int size, bool right) {
  const int blocks = size * 5;
  std::vector<unsigned> out(static_cast<size_t>(blocks * 64));
  CHECK(emulator::launch(kernel, {static_cast<unsigned>(blocks), 64, 256, size}, nullptr, out.data(), size) ==
        cudaSuccess);
  CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess);
  bool same = true;
  for (int i = 0; i < blocks * 64; i++) {
    const int first = i / 64 / size * size;
    int sum = 0;
    for (int block = first; block < first + size; block++) sum += block * 100 + 63 - i % 64 + block;
    same = same && out[static_cast<size_t>(i)] == static_cast<unsigned>(sum);
  }
  return same == right;
}
// Two halves of a warp, each with operations of its own.
__global__ void halves(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16) {
    int sum = lane;
    for (int half = 8; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffu, sum, half);
    out[lane] = sum;
  } else {
    out[lane] = static_cast<int>(2 * __shfl_xor_sync(0xffff0000u, lane * 0.5, 1));
  }
  __syncwarp();
}
__global__ void barriers(int* out) {
  ESP_SHARED(int, shared, [3][64]);
  shared[1][threadIdx.x] = static_cast<int>(threadIdx.x);
  if (threadIdx.x >= 50) return;  // threads that have exited do not count
  const int odd = __syncthreads_count(threadIdx.x % 2);
  const bool seven = __syncthreads_or(threadIdx.x == 7);
  out[threadIdx.x] = shared[1][49 - threadIdx.x] + 1000 * odd + (seven ? 100000 : 0);
}
__global__ void spin_lock(int* lock, int* sum) {
  if (threadIdx.x != 0) return;
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  __threadfence();
  *sum += 1;
  __threadfence();
  atomicExch(lock, 0);
}
__global__ void fresh_memory(int* out) {
  ESP_SHARED(int, shared, [64]);
  out[blockIdx.x * 64 + threadIdx.x] = shared[threadIdx.x];
  shared[threadIdx.x] = 0;
}
__global__ void count_blocks(uint32_t* arrived, int* parts, int* sum) {
  if (threadIdx.x == 5) parts[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
  if (!esp::is_last_block(arrived, gridDim.x)) return;
  if (threadIdx.x != 0) return;
  int total = 0;
  for (unsigned i = 0; i < gridDim.x; i++) total += parts[i];
  *sum = total;
}
__global__ void add(int* x, int n) {
  atomicAdd(x, n);
}
__global__ void times(int* x, int n) {
  *x *= n;
}

// A kernel, and two that follow it: each adds up what the one before wrote, from the last block to the first, and each writes
// what the one before read.
__global__ void write_first(int* out) {
  esp::let_next_begin();
  out[blockIdx.x * 32 + threadIdx.x] = static_cast<int>(blockIdx.x * 32 + threadIdx.x);
}
enum class Waits { first, late, never };
template <Waits when>
__global__ void add_up_and_clear(int* from, int* to) {
  const unsigned i = (gridDim.x - 1 - blockIdx.x) * 32 + 31 - threadIdx.x;
  if (when == Waits::first) esp::wait_for_kernel_before();
  esp::let_next_begin();
  const int found = from[i];
  if (when == Waits::late) esp::wait_for_kernel_before();
  to[i] = found + 1;
  from[i] = 0;
}
// Counts blocks that run before the kernel before them has ended.
__global__ void end_late(int* ended) {
  esp::let_next_begin();
  __syncthreads();
  atomicAdd(ended, 1);
}
__global__ void begin_early(const int* ended, int of, int* early) {
  if (threadIdx.x == 0 && atomicAdd(const_cast<int*>(ended), 0) < of) atomicAdd(early, 1);
  esp::wait_for_kernel_before();
}

// What must be noticed.
__global__ void diverging_barriers(int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void exited_lanes(int) {
  if (threadIdx.x < 20) __shfl_xor_sync(~0u, 1, 1);
}
__global__ void lanes_elsewhere(int) {
  if (threadIdx.x < 20) {
    __shfl_xor_sync(~0u, 1, 1);
  } else {
    __syncthreads();
  }
}
__global__ void not_in_mask(int) {
  __shfl_sync(0xfu, 1, 1);
}
__global__ void source_not_in_mask(int) {
  if (threadIdx.x < 4) __shfl_sync(0xfu, 1, 9);
}
__global__ void different_operations(int) {
  if (threadIdx.x % 2 != 0) {
    __shfl_xor_sync(~0u, 1, 2);
  } else {
    __ballot_sync(~0u, 1);
  }
}
__global__ void spin(int* flag) {
  while (atomicAdd(flag, 0) == 0) {
  }
}
__global__ void too_much_shared(int) {
  ESP_SHARED(char, a, [40000]);
  ESP_SHARED(char, b, [10000]);
  a[0] = b[0];
}
// Races that only an order shows: a reader before the writer, a writer before the reader.
template <bool first, bool second>
__global__ void reverse_twice(int* out) {
  ESP_SHARED(int, shared, [128]);
  int value = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 2; i++) {
    shared[threadIdx.x] = value + i;
    if (first) __syncthreads();
    value = shared[127 - threadIdx.x];
    if (second) __syncthreads();
  }
  out[threadIdx.x] = value;
}

template <class Kernel>
bool reverses(Kernel kernel) {
  std::vector<int> out(128);
  if (!run(kernel, 1, 128, out.data())) return false;
  for (int t = 0; t < 128; t++) {
    if (out[static_cast<size_t>(t)] != t + 1) return false;
  }
  return true;
}

void test_promises() {
  std::vector<int> once(24 * 60);
  CHECK(run(every_thread_once, dim3(2, 3, 4), dim3(5, 4, 3), once.data()));
  bool right = true;
  for (int i = 0; i < 24 * 60; i++) right &= once[static_cast<size_t>(i)] == 1 + i / 60 * 1000 + i % 60;
  CHECK(right);
  int lock = 0, sum = 0;
  CHECK(run(spin_lock, 40, 64, &lock, &sum) && sum == 40);

  std::vector<int> shuffled(32 * 12);
  CHECK(run(shuffle, 1, 32, shuffled.data()));
  for (int t = 0; t < 32; t++) {
    const int* const p = &shuffled[static_cast<size_t>(t) * 12];
    unsigned thirds = 0, alike = 0;
    for (int i = 0; i < 32; i++) {
      thirds |= unsigned{i % 3 == 0} << i;
      alike |= unsigned{i % 5 == t % 5} << i;
    }
    right &=
        p[0] == 3 && p[1] == (t & ~7) + 1 && p[2] == (t < 2 ? t : t - 2) && p[3] == (t % 8 < 3 ? t : t - 3);
    right &= p[4] == (t > 26 ? t : t + 5) && p[5] == (t % 4 == 3 ? t : t + 1) && p[6] == (t ^ 21);
    right &= p[7] == ((t ^ 9) >= (t & ~7) + 8 ? t : (t ^ 9)) && p[8] == static_cast<int>(thirds) && p[9] == 0;
    right &= p[10] == 1 && p[11] == static_cast<int>(alike);
  }
  CHECK(right);
  std::vector<int> half(32);
  CHECK(run(halves, 1, 32, half.data()));
  for (int t = 0; t < 32; t++) right &= half[static_cast<size_t>(t)] == (t < 16 ? 120 : t ^ 1);
  CHECK(right);

  std::vector<int> met(64, -1);
  CHECK(run(barriers, 1, 64, met.data()));
  for (int t = 0; t < 64; t++)
    right &= met[static_cast<size_t>(t)] == (t < 50 ? 49 - t + 25000 + 100000 : -1);
  CHECK(right);
  std::vector<int> fresh(8 * 64, 0);
  CHECK(run(fresh_memory, 8, 64, fresh.data()));
  for (const int x : fresh) right &= x != 0;
  CHECK(right);
  uint32_t arrived = 0;
  std::vector<int> parts(30);
  for (int again = 0; again < 3; again++) {
    sum = 0;
    CHECK(run(count_blocks, 30, 96, &arrived, parts.data(), &sum) && sum == 465 && arrived == 0);
  }
  CHECK(reverses(reverse_twice<true, true>));
}

// Streams run nothing before something waits, in the order that events ask for; a graph runs what it
// captured.
void test_streams() {
  Stream one, two;
  const cudaStream_t first = static_cast<cudaStream_t>(one.get()),
                     second = static_cast<cudaStream_t>(two.get());
  int x = 1;
  cudaEvent_t event;
  CHECK(cudaEventCreate(&event) == cudaSuccess);
  CHECK(emulator::launch(add, {1, 1, 0, 1}, first, &x, 4) == cudaSuccess);
  CHECK(cudaEventRecord(event, first) == cudaSuccess);
  CHECK(emulator::launch(add, {1, 1, 0, 1}, first, &x, 100) == cudaSuccess);
  CHECK(cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
  CHECK(emulator::launch(times, {1, 1, 0, 1}, second, &x, 10) == cudaSuccess);
  CHECK(x == 1);
  CHECK(two.wait() && x == 50);
  CHECK(one.wait() && x == 150);
  CHECK(cudaEventDestroy(event) == cudaSuccess);
  CHECK(run_captured(one, 3, [&] {
    return emulator::launch(add, {1, 1, 0, 1}, first, &x, 1) == cudaSuccess ? ESP_OK : 1;
  }));
  CHECK(x == 153);
  CHECK(!run_captured(one, 1, [&] { return esp_cuda_stream_synchronize(one.get()); }));  // waits
  void* memory;
  CHECK(!run_captured(one, 1, [&] { return esp_cuda_allocate(8, &memory); }));
  // What is copied to a device: memory of the host as it is when the copy runs, pageable or pinned.
  void* pinned;
  int pageable = 1, found = 0;
  CHECK(esp_cuda_allocate(sizeof(int), &memory) == ESP_OK);
  CHECK(esp_cuda_host_allocate(sizeof(int), &pinned) == ESP_OK);
  for (int* from : {&pageable, static_cast<int*>(pinned)}) {
    *from = 1;
    CHECK(esp_cuda_copy(memory, from, sizeof(int), one.get()) == ESP_OK);
    *from = 2;
    CHECK(esp_cuda_copy(&found, memory, sizeof(int), one.get()) == ESP_OK);
    CHECK(one.wait() && found == 2);
  }
  CHECK(esp_cuda_release(memory) == ESP_OK && esp_cuda_host_release(pinned) == ESP_OK);
  emulator::fail_allocation(1);
  CHECK(esp_cuda_allocate(8, &memory) == ESP_OUT_OF_MEMORY);
  emulator::reset();
}

constexpr int chain = 5 * 32;
// Whether three kernels that follow one another give what they give one by one.
template <Waits when>
bool chained(Stream& stream, bool captured) {
  std::vector<int> a(chain, -7), b(chain, -7), c(chain, -7);
  const cudaStream_t raw = static_cast<cudaStream_t>(stream.get());
  const auto queue = [&]() -> esp_status {
    const emulator::Shape following = {5, 32, 0, 1, true};
    return emulator::launch(write_first, {5, 32, 0, 1}, raw, a.data()) == cudaSuccess &&
                   emulator::launch(add_up_and_clear<when>, following, raw, a.data(), b.data()) == cudaSuccess &&
                   emulator::launch(add_up_and_clear<when>, following, raw, b.data(), c.data()) == cudaSuccess
               ? ESP_OK
               : ESP_DEVICE_ERROR;
  };
  if (captured ? !run_captured(stream, 2, queue) : queue() != ESP_OK || !stream.wait()) return false;
  bool right = true;
  for (int i = 0; i < chain; i++) {
    const size_t at = static_cast<size_t>(i);
    right = right && a[at] == 0 && b[at] == 0 && c[at] == i + 2;
  }
  return right;
}

int early_blocks = 0, lost_waits = 0;

void test_chains() {
  Stream stream;
  CHECK(chained<Waits::first>(stream, false));
  CHECK(chained<Waits::first>(stream, true));
  const cudaStream_t raw = static_cast<cudaStream_t>(stream.get());
  int ended = 0;
  CHECK(emulator::launch(end_late, {6, 64, 0, 1}, raw, &ended) == cudaSuccess);
  CHECK(emulator::launch(begin_early, {6, 64, 0, 1, true}, raw, &ended, 6 * 64, &early_blocks) == cudaSuccess);
  CHECK(stream.wait());
#if !defined(__SANITIZE_THREAD__)
  lost_waits += !chained<Waits::late>(stream, false);
  CHECK(!chained<Waits::never>(stream, false));
  CHECK(std::string(emulator::failure()).find("has not waited for the kernel before") != std::string::npos);
  emulator::reset();
  // Kernels follow kernels only, and not on every device.
  CHECK(esp_cuda_fill_zero(&ended, sizeof ended, raw) == ESP_OK);
  CHECK(emulator::launch(begin_early, {6, 64, 0, 1, true}, raw, &ended, 0, &early_blocks) != cudaSuccess);
  emulator::options.major = 8;
  CHECK(stream.wait());
  CHECK(emulator::launch(begin_early, {6, 64, 0, 1, true}, raw, &ended, 0, &early_blocks) != cudaSuccess);
  emulator::options.major = 9;
  emulator::reset();
#endif
}

template <class... P, class... A>
void notices(const char* part, void (*kernel)(P...), dim3 grid, dim3 block, A... arguments) {
  CHECK(!run(kernel, grid, block, arguments...));
  CHECK(std::string(emulator::failure()).find(part) != std::string::npos);
  if (std::string(emulator::failure()).find(part) == std::string::npos)
    std::printf("  %s: %s\n", part, emulator::failure());
  emulator::reset();
}

[[maybe_unused]] void test_notices(int* lost_races) {
  notices("__syncthreads in line", diverging_barriers, 1, 64, 0);
  notices("lanes", exited_lanes, 1, 32, 0);
  notices("do not exist", exited_lanes, 1, 20, 0);
  notices("deadlock", lanes_elsewhere, 1, 32, 0);
  notices("lacks its own lane", not_in_mask, 1, 32, 0);
  notices("which the mask", source_not_in_mask, 1, 32, 0);
  notices("different operations", different_operations, 1, 32, 0);
  notices("over 48 KiB", too_much_shared, 1, 32, 0);
  notices("1024 threads", not_in_mask, 1, 1025, 0);
  notices("empty grid", not_in_mask, 0, 32, 0);
  emulator::options.switches = 10000;
  int zero = 0;
  notices("spins for ever", spin, 1, 32, &zero);
  emulator::options.switches = 1 << 30;
  alignas(8) char bytes[16] = {};
  notices("not aligned", spin, 1, 1, reinterpret_cast<int*>(bytes + 1));
  CHECK(!reverses(reverse_twice<false, true>));
  *lost_races += !reverses(reverse_twice<true, false>);
}

// However much its launches have, a kernel's limit stays: other threads are about to launch it too.
void test_dynamic_shared() {
  for (const int bytes : {70000, 1000, 60000, 72000}) {
    char out = 0;
    CHECK(esp::launch("a kernel", fill_dynamic, esp::Shape{1, 1, bytes, 72000}, nullptr, &out, bytes) ==
          ESP_OK);
    CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess && out == 7);
  }
#if !defined(__SANITIZE_THREAD__)
  emulator::reset();  // without asking, 48 KiB are for static and dynamic memory together
  char out = 0;
  for (const bool asks : {false, true}) {
    constexpr int bytes = 48 << 10;
    CHECK(esp::launch("a kernel", fill_dynamic, esp::Shape{1, 1, bytes, asks ? bytes : 0}, nullptr, &out, bytes) ==
          ESP_OK);
    CHECK((cudaStreamSynchronize(nullptr) == cudaSuccess) == asks);
    emulator::reset();
  }
#endif
}

void test_clusters() {
  for (const int size : {1, 2, 4, 8}) CHECK(looks_around(look_around<true>, size, true));
#if !defined(__SANITIZE_THREAD__)
  CHECK(looks_around(look_around<false>, 4, false));
  int out = 0;
  CHECK(emulator::launch(look_after_the_end, {2, 64, 0, 2}, nullptr, &out) == cudaSuccess);
  CHECK(cudaStreamSynchronize(nullptr) != cudaSuccess);
  CHECK(std::string(emulator::failure()).find("has ended") != std::string::npos);
  emulator::reset();
  const auto refused = [&](emulator::Shape shape) {
    CHECK(emulator::launch(look_after_the_end, shape, nullptr, &out) == cudaErrorInvalidConfiguration);
    cudaGetLastError();
  };
  refused({2, 64, 0, 16});
  refused({3, 64, 0, 2});
  refused({2, 64, 50000, 2});
  for (const int bytes : {300000, 60000, 59999}) {
    CHECK(cudaFuncSetAttribute(look_after_the_end, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) ==
          (bytes == 60000 ? cudaSuccess : cudaErrorInvalidValue));
  }
  cudaGetLastError();
  emulator::options.major = 8;
  refused({2, 64, 0, 2});
  emulator::options.major = 9;
#endif
}

// What the library makes of a device and of CUDA's errors.
void test_device() {
  for (const int major : {7, 8, 9, 10, 12}) {
    emulator::options.major = major;
    esp::DeviceLimits limits;
    CHECK(esp::device_limits(&limits) == ESP_OK);
    CHECK(limits.early_kernels == (major >= 9) && limits.clusters == (major == 9 || major == 10));
    emulator::options.driver = 12020;  // such a kernel cannot be captured there
    CHECK(esp::device_limits(&limits) == ESP_OK);
    CHECK(!limits.early_kernels && limits.clusters == (major == 9 || major == 10));
    emulator::options.driver = 13000;
  }
  emulator::options.major = 9;
  int32_t count = 0;
  CHECK(esp_cuda_device_count(&count) == ESP_OK && count == 1);
  emulator::options.driver = 12080;
  CHECK(esp_cuda_device_count(&count) == ESP_UNSUPPORTED);
  const std::string old = esp_cuda_last_error();
  CHECK(old.find("supports CUDA 12.8; CUDA 13 needs driver 580 or newer") != std::string::npos);
  CHECK(old.find("cuda-compat-13-0") != std::string::npos && old.find("the nvcc of CUDA 12 needs neither") != std::string::npos);
  emulator::options.driver = 11080;  // older than what any nvcc that is known builds for
  CHECK(esp_cuda_device_count(&count) == ESP_UNSUPPORTED);
  CHECK(std::string(esp_cuda_last_error()).find("the nvcc of CUDA 12") == std::string::npos);
  emulator::options.driver = 13000;
  emulator::options.major = 7;
  CHECK(esp_cuda_device_count(&count) == ESP_UNSUPPORTED);
  CHECK(std::string(esp_cuda_last_error()).find("compute capability 7.0; 7.5 or newer") != std::string::npos);
  emulator::options.minor = 5;
  CHECK(esp_cuda_device_count(&count) == ESP_OK && count == 1);
  emulator::options.major = 9;
  emulator::options.minor = 0;
  for (const cudaError_t lost :
       {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorECCUncorrectable, cudaErrorContained,
        cudaErrorNvlinkUncorrectable, cudaErrorTensorMemoryLeak, cudaErrorExternalDevice}) {
    CHECK(esp::check(lost, "a call") == ESP_DEVICE_LOST);
  }
  for (const cudaError_t unusable : {cudaErrorNoDevice, cudaErrorDevicesUnavailable, cudaErrorNoKernelImageForDevice,
                                     cudaErrorSystemNotReady, cudaErrorSystemDriverMismatch}) {
    CHECK(esp::check(unusable, "a call") == ESP_UNSUPPORTED);
  }
  CHECK(esp::check(cudaErrorSystemNotReady, "a call") == ESP_UNSUPPORTED);
  CHECK(std::string(esp_cuda_last_error()).find("nvidia-fabricmanager") != std::string::npos);
  CHECK(esp::check(cudaErrorMemoryAllocation, "a call") == ESP_OUT_OF_MEMORY);
  CHECK(esp::check(cudaErrorInvalidConfiguration, "a call") == ESP_DEVICE_ERROR);
  // Nothing asks CUDA for nothing.
  void* memory = &count;
  CHECK(esp_cuda_allocate(0, &memory) == ESP_OK && memory == nullptr);
  CHECK(esp_cuda_host_allocate(0, &memory) == ESP_OK && memory == nullptr);
  CHECK(esp_cuda_copy(nullptr, nullptr, 0, nullptr) == ESP_OK);
  CHECK(esp_cuda_fill_zero(nullptr, 0, nullptr) == ESP_OK);
}

int lost_races = 0, runs = 0;

void test(const Setting&) {
  test_promises();
  test_device();
  test_dynamic_shared();
  test_clusters();
  test_streams();
  test_chains();
#if !defined(__SANITIZE_THREAD__)  // a launch given up leaves it without the end of its threads
  runs++;
  test_notices(&lost_races);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--read-device-memory") == 0) {  // ASAN must stop it
    void* memory;
    CHECK(esp_cuda_allocate(64, &memory) == ESP_OK);
    return static_cast<int*>(memory)[3];
  }
  const int code = esp_test::run_tests(argc, argv, test);
  if (runs >= 20) {
    std::printf("a missing barrier before reuse showed in %d of %d runs\n", lost_races, runs);
    if (lost_races < runs / 3) return 1;
    std::printf("waiting too late for the kernel before showed in %d of %d runs; %d blocks began early\n",
                lost_waits, runs, early_blocks);
    if (lost_waits < runs / 3 || early_blocks < runs) return 1;
  }
  return code;
}
