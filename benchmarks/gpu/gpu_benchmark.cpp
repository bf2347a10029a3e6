// Times the CUDA operations on this machine's GPU, each against the bytes it must move and the device-to-device copy measured
// in the same run, and checks each result against the CPU's before it is timed.
//
//   gpu_benchmark [--device N] [--quick] [--java-launch MICROSECONDS] [--out FILE.json]
//   gpu_benchmark --probe            only says which GPU is here, or why none
//
// Exit codes: 0 done, 1 a result is wrong or a call failed, 2 usage, 3 no GPU here.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "espalier/cuda/fake_quantize.h"
#include "espalier/cuda/fused_adamw.h"
#include "espalier/cuda/fused_sgd.h"
#include "espalier/cuda/gradient_norm.h"
#include "espalier/cuda/kd_softmax_loss.h"
#include "espalier/cuda/magnitude_prune.h"
#include "espalier/device.h"

#if defined(ESP_ON_GPU)
void launch_nothing(void* stream);  // empty_kernel.cu
#endif

namespace {

bool quick = false;

void require(esp_status status, const char* what) {
  if (status == ESP_OK) return;
  std::fprintf(stderr, "gpu_benchmark: %s: %s\n", what, esp_cuda_last_error());
  std::exit(1);
}
#define REQUIRE(call) require(call, #call)

void require_cpu(esp_status status, const char* what) {
  if (status == ESP_OK) return;
  std::fprintf(stderr, "gpu_benchmark: %s on the CPU: %s\n", what, esp_last_error());
  std::exit(1);
}

void check(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "gpu_benchmark: %s differs from the CPU's: nothing is timed\n", what);
  std::exit(1);
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

  // The median of `rounds` timings of `calls` calls, in milliseconds a call; `before` runs before each, untimed.
  double milliseconds(const std::function<void()>& work, const std::function<void()>& before = {}, int calls = 1) const {
    const int rounds = quick ? 3 : 30;
    std::vector<double> times;
    for (int round = -(quick ? 1 : 5); round < rounds; round++) {
      if (before) before();
      REQUIRE(esp_cuda_event_record(start, stream));
      for (int i = 0; i < calls; i++) work();
      REQUIRE(esp_cuda_event_record(end, stream));
      REQUIRE(esp_cuda_event_synchronize(end));
      float elapsed = 0;
      REQUIRE(esp_cuda_event_elapsed(start, end, &elapsed));
      if (round >= 0) times.push_back(elapsed / calls);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
  // The median of what a call takes of the host's time, while the device is behind.
  double host_milliseconds(const std::function<void()>& work) const {
    const int rounds = quick ? 3 : 30, calls = quick ? 10 : 200;
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
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) values[static_cast<size_t>(i)] = scale * number(seed << 40 | static_cast<uint64_t>(i));
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

struct Row {
  std::string name, size;
  double bytes;  // read and written at the least
  double milliseconds;
};

std::vector<Row> rows;
double copy_bandwidth = 0;  // bytes a second, read plus written

void report(const char* name, const std::string& size, double bytes, double milliseconds) {
  rows.push_back({name, size, bytes, milliseconds});
  std::fprintf(stderr, "%-46s %-30s %10.4f ms  %7.0f GB/s  %5.1f %% of copy\n", name, size.c_str(), milliseconds,
               bytes / milliseconds * 1e-6, 100 * bytes / milliseconds * 1e3 / copy_bandwidth);
}

std::string text(const char* format, long long a, long long b = 0) {
  char buffer[80];
  std::snprintf(buffer, sizeof buffer, format, a, b);
  return buffer;
}

void copy(const Timer& timer) {
  const int64_t bytes = quick ? 1 << 20 : int64_t{1} << 30;
  Memory from(bytes), to(bytes);
  from.zero();
  const double ms = timer.milliseconds([&] { REQUIRE(esp_cuda_copy(to.get(), from.get(), bytes, timer.stream)); });
  copy_bandwidth = 2.0 * static_cast<double>(bytes) / ms * 1e3;
  report("copy, device to device", text("%lld MiB", bytes >> 20), 2.0 * static_cast<double>(bytes), ms);
}

void fake_quantize(const Timer& timer) {
  const int64_t channels = quick ? 64 : 65536, inner = quick ? 256 : 4096, n = channels * inner;  // 1 GiB
  const std::vector<float> x = numbers(n, 0.05f, 1);
  std::vector<float> y(x.size()), scale(static_cast<size_t>(channels));
  std::vector<uint8_t> gate(static_cast<size_t>(n / 8));
  esp_quantizer quantizer = {-127, 127, ESP_ROUND_MULTIPLY, ESP_OBSERVER_MIN_MAX, 1, 127, 0, 0, 0};
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
           text("%lld x %lld F32", channels, inner), bytes, timer.milliseconds(run));
  }
  const auto backward = [&] {
    REQUIRE(esp_cuda_fake_quantize_backward(device_x.get(), device_gate.get<uint8_t>(), device_y.get(), n, ESP_F32,
                                            timer.stream));
  };
  report("fake_quantize, backward", text("%lld x %lld F32", channels, inner),
         8.125 * static_cast<double>(n), timer.milliseconds(backward));
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
template <class Rule>
void fused_step(const Timer& timer, int64_t count, int64_t rows_each, int64_t cols, Step kind, const char* what) {
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
  const bool small = all < 1 << 22;
  report(name.c_str(), text("%lld tensors, %lld weights", count, all), bytes, timer.milliseconds(step, {}, small ? 100 : 1));
  if (small) {
    // What a call costs the thread that makes it, beside the same from Java (LaunchCost in tests, run by run.sh).
    report((name + ", the call itself").c_str(), text("%lld tensors, %lld weights", count, all), 0,
           timer.host_milliseconds(step));
  }
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
  report("magnitude_prune, threshold", text("%lld F32", n), static_cast<double>(n) * (8 + 1.0 / 8), timer.milliseconds(prune));
}

void magnitude_prune(const Timer& timer, int64_t n, esp_dtype dtype, int64_t tensors, bool verify) {
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
         static_cast<double>(all) * (3.0 * static_cast<double>(size) + 1.0 / 8), timer.milliseconds(prune, restore));
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
         timer.milliseconds(run));
}

void write_json(const char* path, const esp_cuda_device& device, int32_t number) {
  FILE* file = std::fopen(path, "w");
  if (file == nullptr) {
    std::fprintf(stderr, "gpu_benchmark: cannot write %s\n", path);
    std::exit(2);
  }
  int32_t runtime = 0, driver = 0;
  esp_cuda_versions(&runtime, &driver);
  std::fprintf(file, "{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"cuda_runtime\": %d, \"cuda_driver\": %d,\n",
               device.name, device.major, device.minor, runtime, driver);
  // How the device was at the end of the run; where the driver's own library does not say, why.
  esp_cuda_condition now;
  if (esp_cuda_device_condition(number, &now) == ESP_OK) {
    std::fprintf(file,
                 " \"driver\": \"%s\", \"sm_megahertz\": %d, \"memory_megahertz\": %d, \"celsius\": %d, "
                 "\"milliwatts\": %d, \"memory_used_bytes\": %lld,\n",
                 now.driver, now.sm_megahertz, now.memory_megahertz, now.celsius, now.milliwatts,
                 static_cast<long long>(now.memory_used_bytes));
  } else {
    std::fprintf(file, " \"driver\": null,\n");
    std::fprintf(stderr, "clocks, temperature and power are not known: %s\n", esp_cuda_last_error());
  }
  std::fprintf(file, " \"copy_bytes_per_second\": %.6g, \"rows\": [", copy_bandwidth);
  for (size_t i = 0; i < rows.size(); i++) {
    const Row& row = rows[i];
    std::fprintf(file, "%s\n  {\"name\": \"%s\", \"size\": \"%s\", \"milliseconds\": %.6g, \"bytes\": %.6g, \"of_copy\": %.4g}",
                 i == 0 ? "" : ",", row.name.c_str(), row.size.c_str(), row.milliseconds, row.bytes,
                 row.bytes / row.milliseconds * 1e3 / copy_bandwidth);
  }
  std::fprintf(file, "\n]}\n");
  if (std::fclose(file) != 0) {
    std::fprintf(stderr, "gpu_benchmark: cannot write %s\n", path);
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* out = nullptr;
  int32_t number_of_device = 0;
  double java_launch = 0;
  bool probe = false;
  for (int i = 1; i < argc; i++) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else if (std::strcmp(argv[i], "--probe") == 0) {
      probe = true;
    } else if (std::strcmp(argv[i], "--out") == 0 && i + 1 < argc) {
      out = argv[++i];
    } else if (std::strcmp(argv[i], "--java-launch") == 0 && i + 1 < argc) {
      java_launch = std::atof(argv[++i]);
    } else if (std::strcmp(argv[i], "--device") == 0 && i + 1 < argc) {
      number_of_device = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: gpu_benchmark [--device N] [--quick] [--java-launch MICROSECONDS] [--out FILE.json] | --probe\n");
      return 2;
    }
  }
  int32_t count = 0;
  if (esp_cuda_device_count(&count) != ESP_OK) {
    std::fprintf(stderr, "no GPU here: %s\n", esp_cuda_last_error());
    return 3;
  }
  esp_cuda_device device;
  REQUIRE(esp_cuda_device_set(number_of_device));
  REQUIRE(esp_cuda_device_info(number_of_device, &device));
  std::fprintf(stderr, "%s, %.1f GiB, compute capability %d.%d\n", device.name,
               static_cast<double>(device.memory_bytes) / (1 << 30), device.major, device.minor);
  if (probe) return 0;
  const Timer timer;
  copy(timer);
  fake_quantize(timer);
  if (quick) {
    fused_step<Sgd>(timer, 4, 16, 256, Step::compressed, "compressed step");
    fused_step<Sgd>(timer, 20, 2, 64, Step::guarded, "guarded");
    fused_step<Adamw>(timer, 4, 16, 256, Step::compressed, "compressed step");
    fused_step<Adamw>(timer, 4, 16, 256, Step::plain, "plain");
    prune_apply(timer, 1 << 16);
    magnitude_prune(timer, 1 << 16, ESP_F32, 4, true);
    magnitude_prune(timer, 1 << 16, ESP_BF16, 4, true);
    kd_softmax_loss(timer, 16, 1000);
    kd_softmax_loss(timer, 3, 5000);
  } else {
    fused_step<Sgd>(timer, 64, 1024, 4096, Step::plain, "plain");  // 1 GiB of weights
    fused_step<Sgd>(timer, 64, 1024, 4096, Step::compressed, "compressed step");
    fused_step<Sgd>(timer, 64, 1024, 4096, Step::guarded, "guarded");
    fused_step<Adamw>(timer, 64, 1024, 4096, Step::plain, "plain");
    fused_step<Adamw>(timer, 64, 1024, 4096, Step::compressed, "compressed step");
    fused_step<Adamw>(timer, 64, 1024, 4096, Step::guarded, "guarded");
#if defined(ESP_ON_GPU)
    report("an empty launch", "1 block", 0, timer.milliseconds([&] { launch_nothing(timer.stream); }, {}, 100));
#endif
    fused_step<Sgd>(timer, 200, 1, 1024, Step::guarded, "guarded, small");
    prune_apply(timer, int64_t{1} << 28);
    magnitude_prune(timer, 110'000'000, ESP_F32, 199, true);
    if (device.memory_bytes > int64_t{36} << 30) magnitude_prune(timer, 7'000'000'000, ESP_BF16, 291, false);
    kd_softmax_loss(timer, 8192, 32000);
    kd_softmax_loss(timer, 4096, 131072);
  }
  if (java_launch > 0) report("fused_sgd, guarded, small, the call from Java", "200 tensors, 204800 weights", 0, java_launch / 1e3);
  if (out != nullptr) write_json(out, device, number_of_device);
  return 0;
}
