// Times the CUDA operations on this machine's GPU, each against the bytes it must move and the device-to-device copy measured
// in the same run, and checks each result against the CPU's before it is timed. What fails is said, left out of the figures and
// named in the file; the others go on. The file is written anew with each figure, so that one who is stopped loses none; what has
// not begun after --seconds is left out. The table comes last, with the targets beside the figures.
//
//   gpu_benchmark [--device N] [--quick] [--seconds N] [--java-launch MICROSECONDS] [--out FILE.json]
//   gpu_benchmark --probe            only says which GPU is here, or why none
//
// Built with ESP_COUNT_WORK, on the emulator, it prints what keeps multiprocessors busy instead, of sizes that show it: --quick.
//
// Exit codes: 0 done, 1 a result is wrong, a call failed, no figure was taken or the GPU cannot be used, 2 usage, 3 no GPU here.
#include <cuda_runtime.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "espalier/cuda/fake_quantize.h"
#include "espalier/cuda/fake_quantize_scale_gradient.h"
#include "espalier/cuda/fused_adamw.h"
#include "espalier/cuda/fused_sgd.h"
#include "espalier/cuda/gradient_norm.h"
#include "espalier/cuda/kd_softmax_loss.h"
#include "espalier/cuda/magnitude_prune.h"
#include "espalier/device.h"

#if defined(ESP_COUNT_WORK)
#include "ptx/count_work.h"
#endif

#if defined(ESP_ON_GPU)
void launch_nothing(void* stream);  // empty_kernel.cu
#endif

namespace {

bool quick = false;
#if defined(ESP_COUNT_WORK)
constexpr bool counting = true;
#else
constexpr bool counting = false;
#endif

// Calls of one timing: so many that the host is ahead of the device; where one alone is too short for the device's clock.
int few_calls() { return quick ? 1 : 5; }
int many_calls() { return quick ? 5 : 100; }

// Why a measurement cannot be made.
struct Failure {
  std::string reason;
  bool lost;  // the device is, and no other can be made
};

void require(esp_status status, const char* what) {
  if (status == ESP_OK) return;
  throw Failure{std::string(what) + ": " + esp_cuda_last_error(), status == ESP_DEVICE_LOST};
}
#define REQUIRE(call) require(call, #call)

void require_cpu(esp_status status, const char* what) {
  if (status != ESP_OK) throw Failure{std::string(what) + " on the CPU: " + esp_last_error(), false};
}

void require_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Failure{std::string(what) + ": " + cudaGetErrorString(error), false};
}

void check(bool right, const char* what) {
  if (!right) throw Failure{std::string(what) + " differs from the CPU's: it is not timed", false};
}

// Device memory.
class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(bytes) { REQUIRE(esp_cuda_allocate(bytes, &address_)); }
  Memory(const void* host, int64_t bytes) : Memory(bytes) { set(host); }
  Memory(Memory&& other) noexcept : address_(other.address_), bytes_(other.bytes_) { other.address_ = nullptr; }
  Memory& operator=(Memory&&) = delete;
  ~Memory() { esp_cuda_release(address_); }
  template <class T = void>
  T* get() const {
    return static_cast<T*>(address_);
  }
  int64_t bytes() const { return bytes_; }
  void set(const void* host) const {
    REQUIRE(esp_cuda_copy(address_, host, bytes_, nullptr));
    REQUIRE(esp_cuda_stream_synchronize(nullptr));
  }
  void zero() const {
    REQUIRE(esp_cuda_fill_zero(address_, bytes_, nullptr));
    REQUIRE(esp_cuda_stream_synchronize(nullptr));
  }
  bool equals(const void* host) const {
    std::vector<char> here(static_cast<size_t>(bytes_));
    REQUIRE(esp_cuda_copy(here.data(), address_, bytes_, nullptr));
    REQUIRE(esp_cuda_stream_synchronize(nullptr));
    return std::memcmp(here.data(), host, here.size()) == 0;
  }

 private:
  void* address_ = nullptr;
  int64_t bytes_;
};

// A plan with its table and workspace on the device; make(plan, table) is the operation's plan function.
struct Planned {
  template <class Make>
  explicit Planned(Make&& make) : plan(first(make)), table(plan.table_bytes), workspace(plan.workspace_bytes) {
    std::vector<char> bytes(static_cast<size_t>(plan.table_bytes));
    REQUIRE(make(&plan, static_cast<void*>(bytes.data())));
    table.set(bytes.data());
    workspace.zero();
  }
  template <class Make>
  static esp_cuda_plan first(Make&& make) {
    esp_cuda_plan plan = {};
    REQUIRE(make(&plan, static_cast<void*>(nullptr)));
    return plan;
  }
  esp_cuda_plan plan;
  Memory table, workspace;
};

struct Timer {
  Timer() {
    REQUIRE(esp_cuda_stream_create(&stream));
    REQUIRE(esp_cuda_event_create(&start));
    REQUIRE(esp_cuda_event_create(&end));
  }
  Timer(const Timer&) = delete;

  // The median of `rounds` timings, in milliseconds a call. Each is of `calls` calls one after the other, so that the host is
  // ahead of the device; or of one, where something runs before it, untimed.
  double milliseconds(const std::function<void()>& work, const std::function<void()>& before = {},
                      int calls = few_calls()) const {
#if defined(ESP_COUNT_WORK)
    if (before) before();
    ptx::count_work(work, stream);
    return 1;
#endif
    using Clock = std::chrono::steady_clock;
    const size_t rounds = quick ? 2 : 30;
    if (before) calls = 1;
    std::vector<double> times;
    // A device that has waited for the host runs slowly at first.
    const Clock::time_point warm = Clock::now() + std::chrono::milliseconds(quick ? 0 : 200);
    for (int round = 0; times.size() < rounds; round++) {
      if (before) before();
      REQUIRE(esp_cuda_event_record(start, stream));
      for (int i = 0; i < calls; i++) work();
      REQUIRE(esp_cuda_event_record(end, stream));
      REQUIRE(esp_cuda_event_synchronize(end));
      float elapsed = 0;
      REQUIRE(esp_cuda_event_elapsed(start, end, &elapsed));
      if (round >= (quick ? 1 : 5) && Clock::now() >= warm) times.push_back(elapsed / calls);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
  // The median of what a call takes of the host's time, while the device is behind.
  double host_milliseconds(const std::function<void()>& work) const {
    const int rounds = quick ? 2 : 30, calls = quick ? 2 : 200;
    std::vector<double> times;
    for (int round = 0; round < rounds; round++) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < calls; i++) work();
      times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count() / calls);
      REQUIRE(esp_cuda_stream_synchronize(stream));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
  void* stream = nullptr;
  void* start = nullptr;
  void* end = nullptr;
};

// `calls` calls as a graph: what they cost a device that need not wait for the host.
class Graph {
 public:
  template <class Work>
  Graph(void* stream, int calls, Work&& work) : stream_(static_cast<cudaStream_t>(stream)) {
    require_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), "beginning a graph");
    try {
      for (int i = 0; i < calls; i++) work();
    } catch (const Failure&) {
      cudaStreamEndCapture(stream_, &graph_);
      throw;
    }
    require_cuda(cudaStreamEndCapture(stream_, &graph_), "ending a graph");
    require_cuda(cudaGraphInstantiate(&executable_, graph_, 0), "making a graph");
  }
  Graph(const Graph&) = delete;
  ~Graph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }
  void launch() const { require_cuda(cudaGraphLaunch(executable_, stream_), "launching a graph"); }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

// Numbers like weights: nearly normal, from a counter, so that every run has the same.
float number(uint64_t index) {
  uint64_t z = (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  int32_t sum = 0;  // of four uniform numbers
  for (int i = 0; i < 4; i++) sum += static_cast<int16_t>(z >> 16 * i);
  return static_cast<float>(sum) * (1.0f / 37837.0f);
}

std::vector<float> numbers(int64_t n, float scale, uint64_t seed) {
  // 2^24 different ones over and over: made in a tenth of the time.
  const int64_t different = std::min<int64_t>(n, 1 << 24);
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < different; i++) values[static_cast<size_t>(i)] = scale * number(seed << 40 | static_cast<uint64_t>(i));
  for (int64_t i = different; i < n; i += different) {
    std::memcpy(values.data() + i, values.data(), static_cast<size_t>(std::min(different, n - i)) * sizeof(float));
  }
  return values;
}

uint16_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float float_of(uint16_t bfloat) {
  const uint32_t bits = static_cast<uint32_t>(bfloat) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// What a figure is to reach: a part of the copy's bandwidth, or a time. 0: nothing is asked of it.
struct Target {
  double of_copy, milliseconds;
};
struct Row {
  std::string name, size;
  double bytes;  // read and written at the least; 0 where time is all that counts
  double milliseconds;
  Target target;
  esp_cuda_condition condition;  // of the device after it was measured; -1 where NVML does not say
};

std::vector<Row> rows;
std::vector<std::string> failures, left_out;
std::string unknown_condition;  // why nothing is known of clocks, temperature and power
int32_t device_number = 0;
esp_cuda_device gpu = {};
const char* out = nullptr;  // file of figures
double copy_bandwidth = 0;  // bytes a second, read plus written

double of_copy(const Row& row) { return row.bytes / row.milliseconds * 1e3 / copy_bandwidth; }
bool has_target(const Row& row) { return row.target.of_copy > 0 || row.target.milliseconds > 0; }
bool is_met(const Row& row) {
  return of_copy(row) >= row.target.of_copy && (row.target.milliseconds == 0 || row.milliseconds <= row.target.milliseconds);
}

void write_json(bool complete);

void report(const std::string& name, const std::string& size, double bytes, double milliseconds, Target target = {}) {
#if defined(ESP_COUNT_WORK)
  ptx::print_work(name, size, bytes);
#endif
  if (quick) target = {};  // of sizes that say nothing
  esp_cuda_condition condition = {"", -1, -1, -1, -1, -1, -1};
  if (esp_cuda_device_condition(device_number, &condition) != ESP_OK) unknown_condition = esp_cuda_last_error();
  rows.push_back({name, size, bytes, milliseconds, target, condition});
  if (!counting) std::fprintf(stderr, "%s, %s: %.4f ms\n", name.c_str(), size.c_str(), milliseconds);
  write_json(false);
}

void print_table() {
  std::printf("\n%s, driver %s\n", gpu.name,
              rows.empty() || rows[0].condition.driver[0] == 0 ? "unknown" : rows[0].condition.driver);
  if (!unknown_condition.empty()) std::printf("clocks, temperature and power are not known: %s\n", unknown_condition.c_str());
  std::printf("%-46s %-30s %12s %9s %9s %5s %4s %5s  %s\n", "operation", "size", "ms", "GB/s", "of copy", "MHz", "C", "W",
              "target");
  for (const Row& row : rows) {
    std::printf("%-46s %-30s %12.4f ", row.name.c_str(), row.size.c_str(), row.milliseconds);
    if (row.bytes > 0) {
      std::printf("%9.0f %7.1f %%", row.bytes / row.milliseconds * 1e-6, 100 * of_copy(row));
    } else {
      std::printf("%19s", "");
    }
    const auto known = [](int32_t value) { return value < 0 ? std::string("?") : std::to_string(value); };
    std::printf(" %5s %4s %5s", known(row.condition.sm_megahertz).c_str(), known(row.condition.celsius).c_str(),
                known(row.condition.milliwatts < 0 ? -1 : row.condition.milliwatts / 1000).c_str());
    if (row.target.of_copy > 0) std::printf("  >= %.0f %% of copy", 100 * row.target.of_copy);
    if (row.target.milliseconds > 0) std::printf("  <= %.4f ms", row.target.milliseconds);
    std::printf("%s\n", !has_target(row) ? "" : is_met(row) ? ": met" : ": MISSED");
  }
  for (const std::string& what : left_out) std::printf("left out: %s\n", what.c_str());
  for (const std::string& what : failures) std::printf("FAILED: %s\n", what.c_str());
}

std::string text(const char* format, long long a, long long b = 0) {
  char buffer[80];
  std::snprintf(buffer, sizeof buffer, format, a, b);
  return buffer;
}

// At the beginning, where it is the measure of all others, and at the end, to see whether the device has changed its pace.
void copy(const Timer& timer, const char* name) {
  const int64_t bytes = quick ? 1 << 20 : int64_t{1} << 30;
  // Not of zeros, which some memory moves faster.
  Memory from(numbers(bytes / 4, 1, 9).data(), bytes), to(bytes);
  const double ms = timer.milliseconds([&] { REQUIRE(esp_cuda_copy(to.get(), from.get(), bytes, timer.stream)); });
  if (copy_bandwidth == 0) copy_bandwidth = 2.0 * static_cast<double>(bytes) / ms * 1e3;
  report(name, text("%lld MiB", bytes >> 20), 2.0 * static_cast<double>(bytes), ms);
}

void fake_quantize(const Timer& timer, int64_t channels, int64_t inner) {
  const int64_t n = channels * inner;
  const std::vector<float> x = numbers(n, 0.05f, 1);
  std::vector<float> y(x.size()), scale(static_cast<size_t>(channels));
  std::vector<uint8_t> gate(static_cast<size_t>(n / 8));
  esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, ESP_OBSERVER_MIN_MAX, 1, 127, 0, 0, 0, 0};
  esp_quantized host = {x.data(), y.data(), nullptr, gate.data(), scale.data(), nullptr, nullptr,
                        1,        channels, inner,   ESP_F32,     ESP_F32,      0,       0};
  require_cpu(esp_fake_quantize(&quantizer, &host, 1), "fake_quantize");
  Memory device_x(x.data(), 4 * n), device_y(4 * n), device_scale(4 * channels), device_gate(n / 8);
  Memory result(sizeof(esp_cuda_quantize_result));
  esp_quantized device = host;
  device.x = device_x.get();
  device.y = device_y.get();
  device.scale = device_scale.get<float>();
  for (const bool gated : {false, true}) {
    device.gate = gated ? device_gate.get<uint8_t>() : nullptr;
    Planned planned([&](esp_cuda_plan* plan, void* table) {
      return esp_cuda_fake_quantize_plan(&quantizer, &device, 1, plan, table);
    });
    const auto run = [&] {
      REQUIRE(esp_cuda_fake_quantize(&planned.plan, planned.table.get(), planned.workspace.get(),
                                     result.get<esp_cuda_quantize_result>(), timer.stream));
    };
    run();
    REQUIRE(esp_cuda_stream_synchronize(timer.stream));
    check(device_y.equals(y.data()) && device_scale.equals(scale.data()), "fake_quantize");
    check(!gated || device_gate.equals(gate.data()), "the gate of fake_quantize");
    const double bytes = 8.0 * static_cast<double>(n) + (gated ? static_cast<double>(n) / 8 : 0);
    report(gated ? "fake_quantize, rows observed, gate" : "fake_quantize, rows observed",
           text("%lld x %lld F32", channels, inner), bytes, timer.milliseconds(run), {0.92, 0});
  }
  const auto backward = [&] {
    REQUIRE(esp_cuda_fake_quantize_backward(device_x.get(), device_gate.get<uint8_t>(), device_y.get(), n, ESP_F32,
                                            timer.stream));
  };
  report("fake_quantize, backward", text("%lld x %lld F32", channels, inner),
         8.125 * static_cast<double>(n), timer.milliseconds(backward));
}

// Gradients of learned scales: of weights, one scale a row; or of an activation, one for all, with that of x.
void scale_gradient(const Timer& timer, int64_t channels, int64_t inner, bool activation) {
  const int64_t n = channels * inner, scales = activation ? 1 : channels;
  const std::vector<float> x = numbers(n, 0.05f, 7), grad_y = numbers(n, 0.01f, 8);
  std::vector<float> grad_x(activation ? x.size() : 0), grad_scale(static_cast<size_t>(scales));
  const std::vector<float> scale(grad_scale.size(), 0.001f);
  const esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, ESP_OBSERVER_NONE, 1, 127, 0, 0, 0, 0};
  const esp_scale_gradient host = {x.data(),     grad_y.data(), activation ? grad_x.data() : nullptr,
                                   scale.data(), nullptr,       grad_scale.data(),
                                   nullptr,      1,             scales,
                                   n / scales,   ESP_F32,       1e-3f};
  require_cpu(esp_fake_quantize_scale_gradient(&quantizer, &host), "fake_quantize_scale_gradient");
  Memory device_x(x.data(), 4 * n), device_grad_y(grad_y.data(), 4 * n), device_grad_x(activation ? 4 * n : 4);
  Memory device_scale(scale.data(), 4 * scales), device_grad_scale(4 * scales);
  Memory result(sizeof(esp_cuda_scale_gradient_result));
  esp_scale_gradient device = host;
  device.x = device_x.get();
  device.grad_y = device_grad_y.get();
  device.grad_x = activation ? device_grad_x.get() : nullptr;
  device.scale = device_scale.get<float>();
  device.grad_scale = device_grad_scale.get<float>();
  Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_fake_quantize_scale_gradient_plan(&quantizer, &device, 1, plan, table);
  });
  const auto run = [&] {
    REQUIRE(esp_cuda_fake_quantize_scale_gradient(&planned.plan, planned.table.get(), planned.workspace.get(),
                                                  result.get<esp_cuda_scale_gradient_result>(), timer.stream));
  };
  run();
  REQUIRE(esp_cuda_stream_synchronize(timer.stream));
  check(device_grad_scale.equals(grad_scale.data()) && (!activation || device_grad_x.equals(grad_x.data())),
        "the gradient of scales");
  report(activation ? "fake_quantize, gradient of one scale and x" : "fake_quantize, gradient of rows' scales",
         text("%lld x %lld F32", channels, inner), static_cast<double>(n) * (activation ? 12 : 8), timer.milliseconds(run));
}

// What the two optimizers do differently here.
struct Sgd {
  static constexpr int states = 1;
  static constexpr const char* name = "fused_sgd";
  using Tensor = esp_sgd_tensor;
  using Options = esp_sgd_options;
  using History = int32_t;
  static Options options(bool guarded) {
    return {0.01, 0.9, 0, 1e-4, guarded ? 1.0 : 0.0, 0, 0, guarded, {}};
  }
  static void put(Tensor& tensor, float* (&state)[1], int64_t step) {
    tensor.momentum = state[0];
    tensor.first = step == 0;
  }
  static constexpr auto plan = esp_cuda_fused_sgd_plan;
  static constexpr auto step = esp_cuda_fused_sgd;
  static constexpr auto on_cpu = esp_fused_sgd;
};
struct Adamw {
  static constexpr int states = 2;
  static constexpr const char* name = "fused_adamw";
  using Tensor = esp_adamw_tensor;
  using Options = esp_adamw_options;
  using History = int64_t;
  static Options options(bool guarded) {
    return {0.001, 0.9, 0.999, 1e-8, 0.01, guarded ? 1.0 : 0.0, 0, guarded, {}};
  }
  static void put(Tensor& tensor, float* (&state)[2], int64_t step) {
    tensor.first_moment = state[0];
    tensor.second_moment = state[1];
    tensor.step = step;
  }
  static constexpr auto plan = esp_cuda_fused_adamw_plan;
  static constexpr auto step = esp_cuda_fused_adamw;
  static constexpr auto on_cpu = esp_fused_adamw;
};

// A list of equal matrices: the compressed step, or with `plain` the update alone.
enum class Step { plain, compressed, guarded };
// empty: what an empty launch takes, or 0; and the same in a graph.
template <class Rule>
void fused_step(const Timer& timer, int64_t count, int64_t rows_each, int64_t cols, Step kind, const char* what,
                double empty = 0, double empty_in_graph = 0) {
  const std::string name = std::string(Rule::name) + ", " + what;
  const bool plain = kind == Step::plain, guarded = kind == Step::guarded;
  const int64_t n = rows_each * cols, all = count * n;
  const std::vector<float> gradient = numbers(all, 0.01f, 3);
  std::vector<float> w = numbers(all, 0.05f, 2), copies(w.size()), state[Rule::states];
  std::vector<float> scales(static_cast<size_t>(count * rows_each));
  std::vector<uint8_t> mask(static_cast<size_t>(all / 8)), gate(mask.size(), 0xff);
  for (size_t i = 0; i < mask.size(); i++) mask[i] = static_cast<uint8_t>(i * 0x9e3779b97f4a7c15u >> 56);
  Memory device_w(w.data(), 4 * all), device_g(gradient.data(), 4 * all), device_copy(plain ? 4 : 4 * all);
  Memory device_mask(mask.data(), all / 8), device_gate(gate.data(), all / 8), device_scale(4 * count * rows_each);
  Memory history(static_cast<int64_t>(sizeof(typename Rule::History)) * count), result(sizeof(esp_step_result));
  std::vector<Memory> device_state;
  for (std::vector<float>& values : state) {
    values.resize(w.size());
    device_state.emplace_back(values.data(), 4 * all);
  }
  history.zero();
  const auto list = [&](bool here, int64_t step) {
    std::vector<typename Rule::Tensor> tensors;
    for (int64_t t = 0; t < count; t++) {
      const auto at = [&](const void* host, const Memory& device, int64_t bytes) {
        return (here ? static_cast<char*>(const_cast<void*>(host)) : device.get<char>()) + t * bytes;
      };
      typename Rule::Tensor tensor = {};
      float* states[Rule::states];
      for (int s = 0; s < Rule::states; s++)
        states[s] = reinterpret_cast<float*>(at(state[s].data(), device_state[static_cast<size_t>(s)], 4 * n));
      Rule::put(tensor, states, step);
      tensor.weight = reinterpret_cast<float*>(at(w.data(), device_w, 4 * n));
      tensor.gradient = at(gradient.data(), device_g, 4 * n);
      tensor.rows = rows_each;
      tensor.cols = cols;
      tensor.gradient_dtype = ESP_F32;
      tensor.working_copy_type = plain ? ESP_COPY_NONE : ESP_COPY_F32;
      if (!plain) {
        tensor.mask = reinterpret_cast<const uint8_t*>(at(mask.data(), device_mask, n / 8));
        tensor.gate = reinterpret_cast<uint8_t*>(at(gate.data(), device_gate, n / 8));
        tensor.working_copy = at(copies.data(), device_copy, 4 * n);
        tensor.scale = reinterpret_cast<float*>(at(scales.data(), device_scale, 4 * rows_each));
        tensor.channel = ESP_CHANNEL_ROW;
      }
      tensors.push_back(tensor);
    }
    return tensors;
  };
  const typename Rule::Options options = Rule::options(guarded);
  const std::vector<typename Rule::Tensor> device = list(false, 0);
  Planned planned([&](esp_cuda_plan* plan, void* table) {
    return Rule::plan(device.data(), count, &options, plan, table);
  });
  const auto step = [&] {
    REQUIRE(Rule::step(&planned.plan, planned.table.get(), planned.workspace.get(), &options,
                       history.get<typename Rule::History>(), result.get<esp_step_result>(), timer.stream));
  };
  for (int64_t i = 0; i < 2; i++) {  // the first step and one with state
    esp_step_result cpu;
    std::vector<typename Rule::Tensor> host = list(true, i);
    require_cpu(Rule::on_cpu(host.data(), count, &options, &cpu), name.c_str());
    step();
  }
  REQUIRE(esp_cuda_stream_synchronize(timer.stream));
  check(device_w.equals(w.data()), name.c_str());
  for (int s = 0; s < Rule::states; s++)
    check(device_state[static_cast<size_t>(s)].equals(state[s].data()), name.c_str());
  check(plain || (device_copy.equals(copies.data()) && device_scale.equals(scales.data()) && device_gate.equals(gate.data())),
        name.c_str());
  // Read w, g and state, write w and state; a compressed step reads mask and gate and writes copy and gate; the
  // guard reads g, mask and gate once more.
  const double bytes = static_cast<double>(all) * (12 + 8 * Rule::states + (plain ? 0 : 4 + 3.0 / 8) +
                                                   (guarded ? 4 + 2.0 / 8 : 0));
  const bool small = n <= 1 << 12;
  const std::string size = text("%lld tensors, %lld weights", count, all);
  if (!small) {
    report(name, size, bytes, timer.milliseconds(step), {kind == Step::compressed && Rule::states == 1 ? 0.92 : 0, 0});
    return;
  }
  // Bound by launches: three empty ones are what it may cost.
  report(name, size, 0, timer.milliseconds(step, {}, many_calls()), {0, 3 * empty});
  // What a call costs the thread that makes it, beside the same from Java (LaunchCost in tests, run by run.sh).
  report(name + ", the call itself", size, 0, timer.host_milliseconds(step));
  const Graph graph(timer.stream, many_calls(), step);
  report(name + ", in a graph", size, 0, timer.milliseconds([&] { graph.launch(); }) / many_calls(),
         {0, 3 * empty_in_graph});
}

// Pruning by a given threshold: the pass that every way of pruning ends with, alone.
void prune_apply(const Timer& timer, int64_t n) {
  std::vector<float> w = numbers(n, 0.05f, 6);
  std::vector<uint8_t> kept(static_cast<size_t>(n / 8));
  Memory weights(w.data(), 4 * n), mask(n / 8), result(sizeof(esp_prune_result));
  const esp_prune_rule rule = {ESP_PRUNE_THRESHOLD, 0, 0, 0, 0.03f, 0, 0};
  const esp_prune_tensor there = {weights.get(), weights.get(), nullptr, mask.get<uint8_t>(), n, 0, 0, ESP_F32};
  const esp_prune_tensor here = {w.data(), w.data(), nullptr, kept.data(), n, 0, 0, ESP_F32};
  Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_magnitude_prune_plan(&there, 1, &rule, plan, table);
  });
  const auto prune = [&] {
    REQUIRE(esp_cuda_magnitude_prune(&planned.plan, planned.table.get(), planned.workspace.get(), &rule,
                                     result.get<esp_prune_result>(), nullptr, timer.stream));
  };
  esp_prune_result pruned;
  require_cpu(esp_magnitude_prune(&here, 1, &rule, &pruned, nullptr), "magnitude_prune");
  prune();
  REQUIRE(esp_cuda_stream_synchronize(timer.stream));
  check(weights.equals(w.data()) && mask.equals(kept.data()), "magnitude_prune by a threshold");
  int64_t untouched = 0;  // in place, 4 weights that all stay are not written
  for (uint8_t bits : kept) untouched += ((bits & 15) == 15 ? 4 : 0) + (bits >> 4 == 15 ? 4 : 0);
  report("magnitude_prune, threshold", text("%lld F32", n),
         static_cast<double>(n) * (8 + 1.0 / 8) - 4.0 * static_cast<double>(untouched), timer.milliseconds(prune), {0.92, 0});
}

void magnitude_prune(const Timer& timer, int64_t n, esp_dtype dtype, int64_t tensors, bool verify, double most_milliseconds) {
  const int64_t size = dtype == ESP_F32 ? 4 : 2, each = n / tensors / 8 * 8, all = each * tensors;
  // A block of 2^24 different numbers, over and over: the list has the spread of a real one and is quickly made.
  const int64_t block = std::min<int64_t>(all, 1 << 24);
  const std::vector<float> values = numbers(block, 0.05f, 4);
  std::vector<uint16_t> halves;
  if (size == 2) {
    for (float v : values) halves.push_back(bfloat16(v));
  }
  const char* bytes = size == 2 ? reinterpret_cast<const char*>(halves.data()) : reinterpret_cast<const char*>(values.data());
  Memory source(all * size), weights(all * size), mask((all + 7) / 8);
  for (int64_t at = 0; at < all; at += block) {
    REQUIRE(esp_cuda_copy(source.get<char>() + at * size, bytes, std::min(block, all - at) * size, nullptr));
  }
  REQUIRE(esp_cuda_stream_synchronize(nullptr));
  const esp_prune_rule rule = {ESP_PRUNE_AMOUNT, ESP_PRUNE_GLOBAL, 0.5, 0, 0, 0, 0};
  std::vector<esp_prune_tensor> list;
  for (int64_t t = 0; t < tensors; t++) {
    char* at = weights.get<char>() + t * each * size;
    list.push_back({at, at, nullptr, mask.get<uint8_t>() + t * each / 8, each, 0, 0, dtype});
  }
  Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_magnitude_prune_plan(list.data(), tensors, &rule, plan, table);
  });
  Memory result(sizeof(esp_prune_result));
  const auto restore = [&] { REQUIRE(esp_cuda_copy(weights.get(), source.get(), all * size, timer.stream)); };
  const auto prune = [&] {
    REQUIRE(esp_cuda_magnitude_prune(&planned.plan, planned.table.get(), planned.workspace.get(), &rule,
                                     result.get<esp_prune_result>(), nullptr, timer.stream));
  };
  if (verify) {
    std::vector<char> host(static_cast<size_t>(all * size));
    std::vector<uint8_t> host_mask(static_cast<size_t>((all + 7) / 8));
    for (int64_t at = 0; at < all; at += block) {
      std::memcpy(host.data() + at * size, bytes, static_cast<size_t>(std::min(block, all - at) * size));
    }
    std::vector<esp_prune_tensor> cpu = list;
    for (int64_t t = 0; t < tensors; t++) {
      esp_prune_tensor& tensor = cpu[static_cast<size_t>(t)];
      tensor.weights = tensor.out = host.data() + t * each * size;
      tensor.mask_out = host_mask.data() + t * each / 8;
    }
    esp_prune_result pruned;
    require_cpu(esp_magnitude_prune(cpu.data(), tensors, &rule, &pruned, nullptr), "magnitude_prune");
    restore();
    prune();
    REQUIRE(esp_cuda_stream_synchronize(timer.stream));
    check(weights.equals(host.data()) && mask.equals(host_mask.data()), "magnitude_prune");
  }
  // One reading to find the cut, one to apply it, one writing.
  report("magnitude_prune, half, global", text(size == 2 ? "%lld BF16 in %lld" : "%lld F32 in %lld", all, tensors),
         static_cast<double>(all) * (3.0 * static_cast<double>(size) + 1.0 / 8), timer.milliseconds(prune, restore),
         {0, most_milliseconds});
}

void kd_softmax_loss(const Timer& timer, int64_t n, int64_t classes) {
  const int64_t all = n * classes;
  const int64_t block = std::min<int64_t>(all, 1 << 24);
  const std::vector<float> values = numbers(block, 2, 5);
  std::vector<uint16_t> student(static_cast<size_t>(all)), teacher(student.size()), gradient(student.size());
  for (int64_t i = 0; i < all; i++) {
    student[static_cast<size_t>(i)] = bfloat16(values[static_cast<size_t>(i % block)]);
    teacher[static_cast<size_t>(i)] = bfloat16(values[static_cast<size_t>((i + 4099) % block)]);
  }
  std::vector<int64_t> labels(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) labels[static_cast<size_t>(i)] = i * 7919 % classes;
  esp_kd_softmax_loss_arguments host = {};
  host.rows = n;
  host.classes = classes;
  host.student = {student.data(), classes, ESP_BF16};
  host.teacher = {teacher.data(), classes, ESP_BF16};
  host.labels = labels.data();
  host.gradient = gradient.data();
  host.gradient_stride = classes;
  host.gradient_dtype = ESP_BF16;
  host.ignore_index = -100;
  host.temperature = 2;
  host.alpha = 0.5;
  esp_kd_softmax_loss_result loss;
  require_cpu(esp_kd_softmax_loss(&host, &loss), "kd_softmax_loss");
  Memory device_student(student.data(), 2 * all), device_teacher(teacher.data(), 2 * all), device_gradient(2 * all);
  Memory device_labels(labels.data(), 8 * n), result(sizeof(esp_cuda_kd_softmax_loss_result));
  esp_kd_softmax_loss_arguments device = host;
  device.student.data = device_student.get();
  device.teacher.data = device_teacher.get();
  device.labels = device_labels.get<int64_t>();
  device.gradient = device_gradient.get();
  int64_t bytes = 0;
  REQUIRE(esp_cuda_kd_softmax_loss_workspace(&device, &bytes));
  Memory workspace(bytes);
  workspace.zero();
  const auto run = [&] {
    REQUIRE(esp_cuda_kd_softmax_loss(&device, workspace.get(), result.get<esp_cuda_kd_softmax_loss_result>(), timer.stream));
  };
  device_gradient.set(std::vector<uint16_t>(static_cast<size_t>(all), 0x7fc0).data());  // NaN where nothing is written
  run();
  REQUIRE(esp_cuda_stream_synchronize(timer.stream));
  // Not the CPU's bits (see the header): both are rounded to BF16, so they differ by less than that in the mean.
  std::vector<uint16_t> found(gradient.size());
  REQUIRE(esp_cuda_copy(found.data(), device_gradient.get(), 2 * all, nullptr));
  REQUIRE(esp_cuda_stream_synchronize(nullptr));
  double error = 0, size = 0;
  for (size_t i = 0; i < found.size(); i++) {
    const double x = float_of(found[i]), y = float_of(gradient[i]);
    error += (x - y) * (x - y);
    size += y * y;
  }
  check(std::sqrt(error) <= 0x1p-10 * std::sqrt(size), "the gradient of kd_softmax_loss");
  // Student and teacher read once, the gradient written once.
  report("kd_softmax_loss with gradient", text("%lld x %lld BF16", n, classes), 6.0 * static_cast<double>(all),
         timer.milliseconds(run), {0.85, 0});
}

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    json += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return json + "\"";
}
void write_list(FILE* file, const char* name, const std::vector<std::string>& list) {
  std::fprintf(file, " \"%s\": [", name);
  for (size_t i = 0; i < list.size(); i++) std::fprintf(file, "%s%s", i == 0 ? "" : ", ", quoted(list[i]).c_str());
  std::fprintf(file, "],\n");
}

// Writes the figures so far, if there is a file for them: whole, or it stays as it was. complete: no more are to come.
void write_json(bool complete) {
  if (out == nullptr) return;
  const std::string part = std::string(out) + ".part";
  FILE* file = std::fopen(part.c_str(), "w");
  if (file == nullptr) {
    std::fprintf(stderr, "gpu_benchmark: cannot write %s: %s\n", part.c_str(), std::strerror(errno));
    std::exit(2);
  }
  int32_t runtime = 0, driver = 0;
  esp_cuda_versions(&runtime, &driver);
  std::fprintf(file, "{\"device\": %s, \"compute_capability\": \"%d.%d\", \"multiprocessors\": %d, \"memory_bytes\": %lld,\n",
               quoted(gpu.name).c_str(), gpu.major, gpu.minor, gpu.multiprocessors, static_cast<long long>(gpu.memory_bytes));
  std::fprintf(file, " \"cuda_runtime\": %d, \"cuda_driver\": %d, \"complete\": %s,\n", runtime, driver,
               complete ? "true" : "false");
  if (!rows.empty() && rows[0].condition.driver[0] != 0) {
    std::fprintf(file, " \"driver\": %s,\n", quoted(rows[0].condition.driver).c_str());
  } else {
    std::fprintf(file, " \"driver\": null, \"condition_unknown\": %s,\n", quoted(unknown_condition).c_str());
  }
  write_list(file, "failed", failures);
  write_list(file, "left_out", left_out);
  std::fprintf(file, " \"copy_bytes_per_second\": %.6g, \"rows\": [", copy_bandwidth);
  for (size_t i = 0; i < rows.size(); i++) {
    const Row& row = rows[i];
    std::fprintf(file, "%s\n  {\"name\": %s, \"size\": %s, \"milliseconds\": %.6g, \"bytes\": %.6g, \"of_copy\": %.4g",
                 i == 0 ? "" : ",", quoted(row.name).c_str(), quoted(row.size).c_str(), row.milliseconds, row.bytes,
                 of_copy(row));
    const auto put = [&](const char* name, int64_t value) {
      if (value >= 0) std::fprintf(file, ", \"%s\": %lld", name, static_cast<long long>(value));
    };
    put("sm_megahertz", row.condition.sm_megahertz);
    put("memory_megahertz", row.condition.memory_megahertz);
    put("celsius", row.condition.celsius);
    put("milliwatts", row.condition.milliwatts);
    put("memory_used_bytes", row.condition.memory_used_bytes);
    if (row.target.of_copy > 0) std::fprintf(file, ", \"target_of_copy\": %.4g", row.target.of_copy);
    if (row.target.milliseconds > 0) std::fprintf(file, ", \"target_milliseconds\": %.6g", row.target.milliseconds);
    if (has_target(row)) std::fprintf(file, ", \"met\": %s", is_met(row) ? "true" : "false");
    std::fprintf(file, "}");
  }
  std::fprintf(file, "\n]}\n");
  const bool failed = std::ferror(file) != 0;
  if (std::fclose(file) != 0 || failed || std::rename(part.c_str(), out) != 0) {
    std::fprintf(stderr, "gpu_benchmark: cannot write %s: %s\n", out, std::strerror(errno));
    std::exit(1);
  }
}

// All figures. Each is attempted where `seconds` are not over and the device has the memory for it, about `gibibytes`.
void measure(double java_launch, double seconds) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point began = Clock::now();
  bool lost = false;
  const auto attempt = [&](const char* what, double gibibytes, const std::function<void()>& work) {
    if (lost) return;
    if (std::chrono::duration<double>(Clock::now() - began).count() >= seconds) {
      left_out.push_back(std::string(what) + ": the time is up");
      return;
    }
    if (gibibytes * 1.1 > static_cast<double>(gpu.memory_bytes) / (1 << 30)) {
      left_out.push_back(std::string(what) + ", which needs " +
                         std::to_string(static_cast<int>(std::ceil(gibibytes))) + " GiB");
      return;
    }
    try {
      work();
    } catch (const Failure& failure) {
      std::fprintf(stderr, "FAILED: %s: %s\n", what, failure.reason.c_str());
      failures.push_back(std::string(what) + ": " + failure.reason);
      lost = failure.lost;
    }
  };
  std::unique_ptr<Timer> made;
  attempt("copy", 2, [&] {
    made = std::make_unique<Timer>();
    copy(*made, "copy, device to device");
  });
  if (copy_bandwidth == 0) return;  // nothing to compare with
  const Timer& timer = *made;
  // Beside the last call from C; half a microsecond more is what it may take.
  const auto from_java = [&] {
    const auto call = std::find_if(rows.rbegin(), rows.rend(), [](const Row& row) {
      return row.name.find("the call itself") != std::string::npos;
    });
    if (java_launch == 0 || call == rows.rend()) return;
    const Row c = *call;
    report(c.name + " from Java", c.size, 0, java_launch / 1e3, {0, c.milliseconds + 0.5e-3});
  };
  if (counting) {
    // Rows and pieces as long as those of large tensors.
    attempt("fake_quantize", 1, [&] { fake_quantize(timer, 48, 4096); });
    attempt("scale gradient", 1, [&] { scale_gradient(timer, 48, 4096, false); });
    attempt("scale gradient", 1, [&] { scale_gradient(timer, 48, 4096, true); });
    for (const Step kind : {Step::plain, Step::compressed, Step::guarded}) {
      const char* what = kind == Step::plain ? "plain" : kind == Step::compressed ? "compressed step" : "guarded";
      attempt("fused_sgd", 1, [&] { fused_step<Sgd>(timer, 1, 48, 4096, kind, what); });
      attempt("fused_adamw", 1, [&] { fused_step<Adamw>(timer, 1, 48, 4096, kind, what); });
    }
    attempt("magnitude_prune", 1, [&] { prune_apply(timer, 1 << 18); });
    attempt("magnitude_prune", 1, [&] { magnitude_prune(timer, 1 << 21, ESP_F32, 4, true, 0); });
    attempt("magnitude_prune", 1, [&] { magnitude_prune(timer, 1 << 21, ESP_BF16, 4, true, 0); });
    attempt("kd_softmax_loss", 1, [&] { kd_softmax_loss(timer, 4, 32000); });
    attempt("kd_softmax_loss", 1, [&] { kd_softmax_loss(timer, 1, 131072); });
  } else if (quick) {
    attempt("fake_quantize", 1, [&] { fake_quantize(timer, 64, 256); });
    attempt("scale gradient", 1, [&] { scale_gradient(timer, 64, 256, false); });
    attempt("scale gradient", 1, [&] { scale_gradient(timer, 64, 256, true); });
    attempt("fused_sgd", 1, [&] { fused_step<Sgd>(timer, 4, 16, 256, Step::compressed, "compressed step"); });
    attempt("fused_sgd", 1, [&] { fused_step<Sgd>(timer, 20, 2, 64, Step::guarded, "guarded"); });
    from_java();
    attempt("fused_adamw", 1, [&] { fused_step<Adamw>(timer, 4, 16, 256, Step::compressed, "compressed step"); });
    attempt("fused_adamw", 1, [&] { fused_step<Adamw>(timer, 4, 16, 256, Step::plain, "plain"); });
    attempt("magnitude_prune", 1, [&] { prune_apply(timer, 1 << 16); });
    attempt("magnitude_prune", 1, [&] { magnitude_prune(timer, 1 << 16, ESP_F32, 4, true, 0); });
    attempt("magnitude_prune", 1, [&] { magnitude_prune(timer, 1 << 16, ESP_BF16, 4, true, 0); });
    attempt("kd_softmax_loss", 1, [&] { kd_softmax_loss(timer, 16, 1000); });
    attempt("kd_softmax_loss", 1, [&] { kd_softmax_loss(timer, 3, 5000); });
  } else {
    attempt("fake_quantize of 1 GiB", 2.1, [&] { fake_quantize(timer, 65536, 4096); });
    attempt("scale gradient of 1 GiB", 2.1, [&] { scale_gradient(timer, 65536, 4096, false); });
    attempt("scale gradient of 1 GiB", 3.1, [&] { scale_gradient(timer, 65536, 4096, true); });
    for (const Step kind : {Step::plain, Step::compressed, Step::guarded}) {  // 1 GiB of weights
      const char* what = kind == Step::plain ? "plain" : kind == Step::compressed ? "compressed step" : "guarded";
      attempt("fused_sgd of 1 GiB", 4.2, [&] { fused_step<Sgd>(timer, 64, 1024, 4096, kind, what); });
      attempt("fused_adamw of 1 GiB", 5.2, [&] { fused_step<Adamw>(timer, 64, 1024, 4096, kind, what); });
    }
    double empty = 0, empty_in_graph = 0;
#if defined(ESP_ON_GPU)
    attempt("empty launches", 1, [&] {
      const auto nothing = [&] { launch_nothing(timer.stream); };
      empty = timer.milliseconds(nothing, {}, many_calls());
      report("an empty launch", "1 block", 0, empty);
      const Graph graph(timer.stream, many_calls(), nothing);
      empty_in_graph = timer.milliseconds([&] { graph.launch(); }) / many_calls();
      report("an empty launch, in a graph", "1 block", 0, empty_in_graph);
    });
#endif
    attempt("fused_sgd of small tensors", 1, [&] {
      fused_step<Sgd>(timer, 200, 1, 1024, Step::guarded, "guarded, small", empty, empty_in_graph);
    });
    from_java();
    attempt("magnitude_prune of 1 GiB", 1.1, [&] { prune_apply(timer, int64_t{1} << 28); });
    attempt("magnitude_prune of 110 M weights", 1, [&] { magnitude_prune(timer, 110'000'000, ESP_F32, 199, true, 0.4); });
    attempt("magnitude_prune of 7 G weights", 28, [&] { magnitude_prune(timer, 7'000'000'000, ESP_BF16, 291, false, 20); });
    attempt("kd_softmax_loss of 8192 x 32000", 1.6, [&] { kd_softmax_loss(timer, 8192, 32000); });
    attempt("kd_softmax_loss of 4096 x 131072", 3.1, [&] { kd_softmax_loss(timer, 4096, 131072); });
  }
  attempt("copy", 2, [&] { copy(timer, "copy, device to device, at the end"); });
}

}  // namespace

int main(int argc, char** argv) {
  double java_launch = 0, seconds = HUGE_VAL;
  bool probe = false;
  for (int i = 1; i < argc; i++) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else if (std::strcmp(argv[i], "--probe") == 0) {
      probe = true;
    } else if (std::strcmp(argv[i], "--out") == 0 && i + 1 < argc) {
      out = argv[++i];
    } else if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (std::strcmp(argv[i], "--java-launch") == 0 && i + 1 < argc) {
      java_launch = std::atof(argv[++i]);
    } else if (std::strcmp(argv[i], "--device") == 0 && i + 1 < argc) {
      device_number = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: gpu_benchmark [--device N] [--quick] [--seconds N] [--java-launch MICROSECONDS] "
                           "[--out FILE.json] | --probe\n");
      return 2;
    }
  }
  int32_t count = 0;
  if (esp_cuda_device_count(&count) != ESP_OK) {
    const std::string reason = esp_cuda_last_error();
    int32_t runtime = 0, driver = 0;
    const bool none = esp_cuda_versions(&runtime, &driver) != ESP_OK || driver == 0 || cudaGetDeviceCount(&count) == cudaErrorNoDevice;
    std::fprintf(stderr, "%s: %s\n", none ? "no GPU here" : "the GPU here cannot be used", reason.c_str());
    return none ? 3 : 1;
  }
  try {
    REQUIRE(esp_cuda_device_set(device_number));
    REQUIRE(esp_cuda_device_info(device_number, &gpu));
  } catch (const Failure& failure) {
    std::fprintf(stderr, "gpu_benchmark: %s\n", failure.reason.c_str());
    return 1;
  }
  std::fprintf(stderr, "%s, %.1f GiB, compute capability %d.%d\n", gpu.name,
               static_cast<double>(gpu.memory_bytes) / (1 << 30), gpu.major, gpu.minor);
  if (probe) return 0;
  measure(java_launch, seconds);
  if (!counting) print_table();
  write_json(true);
  return failures.empty() && !rows.empty() ? 0 : 1;
}
