// What the tests of fused optimizer steps on a device share: a device gives the CPU's bits for every working
// copy and kind of channel, shapes around a pack (4), a word of bits (32), a piece (6144 elements, 1024
// rows), a panel (256 x 48) and beyond; unaligned starts; steps in a row, some of them skipped; NaN, infinity
// and denormals.
#pragma once
#include <cmath>

#include "device_test.h"
#include "espalier/common.h"
#include "espalier/step_result.h"
#include "espalier/working_copy.h"

namespace esp_test {

struct Case {
  int64_t rows, cols;
  esp_dtype gradient;
  int32_t copy, channel;
  bool scaled, given, masked, gated;
};

inline int64_t copy_size(int32_t copy) {
  return copy == ESP_COPY_F32 ? 4 : copy == ESP_COPY_INT8 ? 1 : copy == ESP_COPY_NONE ? 0 : 2;
}

inline float number(Random& random) {
  switch (random.below(64)) {
    case 0:
      return random.uniform() * 1e-39f;  // denormal
    case 1:
      return 0.0f;
    case 2:
      return -0.0f;
    default:
      return random.uniform();
  }
}

// One tensor with all that belongs to it, on both sides. Operation says what the state is and what is called.
template <class Operation>
struct Subject {
  using Tensor = typename Operation::Tensor;

  Subject(const Case& c, Random& random)
      : n(c.rows * c.cols),
        scales(c.channel == ESP_CHANNEL_TENSOR || c.rows * c.cols == 0 ? 1
               : c.channel == ESP_CHANNEL_ROW                          ? c.rows
                                                                       : c.cols),
        weight(static_cast<size_t>(n)),
        state(Operation::states, std::vector<float>(static_cast<size_t>(n), std::nanf(""))),
        gradient(static_cast<size_t>(n * (c.gradient == ESP_F32 ? 4 : 2))),
        mask(static_cast<size_t>((n + 7) / 8)),
        gate(mask.size()),
        copy(static_cast<size_t>(n * copy_size(c.copy))),
        scale(static_cast<size_t>(scales), 0.004f),
        device_weight(n, random.below(4) == 0 ? random.below(4) : 0),
        device_gradient(static_cast<int64_t>(gradient.size()),
                        random.below(4) == 0 ? random.below(8) * 4 : 0),
        device_mask(static_cast<int64_t>(mask.size()), random.below(4)),
        device_gate(static_cast<int64_t>(gate.size()), random.below(4)),
        device_copy(static_cast<int64_t>(copy.size()),
                    random.below(4) == 0 ? random.below(4) * copy_size(c.copy) : 0),
        device_scale(scales) {
    for (float& w : weight) w = number(random);
    for (int64_t i = 0; i < n; i++) {
      const float g = number(random) * 0.5f;
      uint32_t word;
      std::memcpy(&word, &g, 4);
      if (c.gradient == ESP_F32) {
        std::memcpy(gradient.data() + i * 4, &word, 4);
      } else {
        const uint16_t half = static_cast<uint16_t>(word >> 16);  // finite as either type
        std::memcpy(gradient.data() + i * 2, &half, 2);
      }
    }
    for (uint8_t& bits : mask) bits = static_cast<uint8_t>(random.bits() | random.bits());
    for (uint8_t& bits : gate) bits = static_cast<uint8_t>(random.bits() | random.bits());
    for (int s = 0; s < Operation::states; s++)
      device_state.emplace_back(n, random.below(6) == 0 ? random.below(4) : 0);
    host = {};
    host.weight = weight.data();
    host.gradient = gradient.data();
    if (c.masked) host.mask = mask.data();
    if (c.gated) host.gate = gate.data();
    if (c.copy != ESP_COPY_NONE) host.working_copy = copy.data();
    if (c.scaled) host.scale = scale.data();
    host.rows = c.rows;
    host.cols = c.cols;
    host.gradient_dtype = c.gradient;
    host.working_copy_type = c.copy;
    host.channel = c.channel;
    host.scale_given = c.given;
    device = host;
    device.weight = device_weight.get();
    device.gradient = device_gradient.get();
    if (c.masked) device.mask = device_mask.get();
    if (c.gated) device.gate = device_gate.get();
    if (c.copy != ESP_COPY_NONE) device.working_copy = device_copy.get();
    if (c.scaled) device.scale = device_scale.get();
    for (int s = 0; s < Operation::states; s++) {
      Operation::set_state(host, s, state[static_cast<size_t>(s)].data());
      Operation::set_state(device, s, device_state[static_cast<size_t>(s)].get());
    }
    upload();
  }

  void upload() {
    device_weight.set(weight);
    for (size_t s = 0; s < state.size(); s++) device_state[s].set(state[s]);
    device_gradient.set(gradient);
    device_mask.set(mask);
    device_gate.set(gate);
    device_copy.set(copy);
    device_scale.set(scale);
  }

  bool same() const {
    bool equal = same_floats(device_weight.values(), weight) &&
                 (host.gate == nullptr || device_gate.values() == gate) &&
                 (host.scale == nullptr || same_floats(device_scale.values(), scale)) && same_copy();
    for (size_t s = 0; s < state.size(); s++)
      equal = equal && same_floats(device_state[s].values(), state[s]);
    if (!equal) {
      std::printf("  rows %lld cols %lld gradient %d copy %d channel %d scaled %d given %d mask %d gate %d\n",
                  static_cast<long long>(host.rows), static_cast<long long>(host.cols), host.gradient_dtype,
                  host.working_copy_type, host.channel, host.scale != nullptr, host.scale_given,
                  host.mask != nullptr, host.gate != nullptr);
    }
    return equal;
  }

  int64_t n, scales;
  std::vector<float> weight;
  std::vector<std::vector<float>> state;
  std::vector<uint8_t> gradient, mask, gate, copy;
  std::vector<float> scale;
  Device<float> device_weight;
  Device<uint8_t> device_gradient, device_mask, device_gate, device_copy;
  Device<float> device_scale;
  std::vector<Device<float>> device_state;
  Tensor host, device;

 private:
  // The bits, or NaN on both sides.
  static bool same_floats(const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); i++) {
      if (std::memcmp(&a[i], &b[i], 4) != 0 && !(a[i] != a[i] && b[i] != b[i])) return false;
    }
    return a.size() == b.size();
  }
  static uint32_t canonical(const uint8_t* p, int32_t type) {
    uint16_t half;
    uint32_t word;
    std::memcpy(&half, p, 2);
    if (type == ESP_COPY_BF16) return (half & 0x7fff) > 0x7f80 ? 0x7fff : half;
    if (type == ESP_COPY_F16) return (half & 0x7fff) > 0x7c00 ? 0x7fff : half;
    std::memcpy(&word, p, 4);
    return (word & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : word;
  }
  bool same_copy() const {
    const std::vector<uint8_t> other = device_copy.values();
    const int64_t size = copy_size(host.working_copy_type);
    if (size < 2) return other == copy;
    for (int64_t i = 0; i < n; i++) {
      if (canonical(other.data() + i * size, host.working_copy_type) !=
          canonical(copy.data() + i * size, host.working_copy_type)) {
        return false;
      }
    }
    return true;
  }
};

inline bool same(double a, double b) {
  return std::memcmp(&a, &b, 8) == 0 || (a != a && b != b);
}

// The same list on both sides, step after step.
template <class Operation>
class Pair {
  using Tensor = typename Operation::Tensor;
  using Options = typename Operation::Options;

 public:
  Pair(const std::vector<Case>& cases, const Options& options, Random& random)
      : options_(options), history_(static_cast<int64_t>(cases.size())), result_(1) {
    subjects_.reserve(cases.size());
    for (const Case& c : cases) {
      subjects_.emplace_back(c, random);
      host_.push_back(subjects_.back().host);
      device_.push_back(subjects_.back().device);
    }
    history_.zero();
  }
  std::vector<Subject<Operation>>& subjects() { return subjects_; }

  // `steps` steps, the last two of them from a graph, which takes no noise.
  void run(int steps, int32_t skipped) {
    const int64_t count = static_cast<int64_t>(host_.size());
    const Planned planned([&](esp_cuda_plan* plan, void* table) {
      return Operation::plan(device_.data(), count, &options_, plan, table);
    });
    const Stream stream;
    const auto step = [&] {
      return Operation::queue(&planned.plan, planned.table(), planned.workspace(), &options_, history_.get(),
                              result_.get(), stream.get());
    };
    esp_step_result expected = {};
    const bool noisy = options_.noise.sigma > 0;
    for (int i = 0; i < steps; i++, options_.noise.counter += 1000) {
      CHECK(Operation::run(host_.data(), count, &options_, &expected) ==
            (skipped == ESP_STEP_REFUSED ? ESP_NON_FINITE : ESP_OK));
    }
    options_.noise.counter -= 1000 * steps;
    for (int i = 0; i + (noisy ? 0 : 2) < steps; i++, options_.noise.counter += 1000) CHECK(step() == ESP_OK);
    CHECK(stream.wait());
    if (noisy) {
      CHECK(
          run_captured(stream, 1, [&] { return step() == ESP_UNSUPPORTED ? ESP_OK : ESP_INVALID_ARGUMENT; }));
    } else {
      CHECK(run_captured(stream, steps < 2 ? steps : 2, step));
    }
    const esp_step_result found = result_.values()[0];
    CHECK(found.skipped == skipped);
    if (skipped != ESP_STEP_REFUSED) {
      CHECK(same(found.norm, expected.norm) && same(found.clip_factor, expected.clip_factor));
      CHECK(found.non_finite == expected.non_finite &&
            found.non_finite_channels == expected.non_finite_channels);
    }
    for (const Subject<Operation>& subject : subjects_) CHECK(subject.same());
  }

 private:
  Options options_;
  std::vector<Subject<Operation>> subjects_;
  std::vector<Tensor> host_, device_;
  Device<typename Operation::History> history_;
  Device<esp_step_result> result_;
};

inline std::vector<Case> cases(const Setting& setting, Random& random) {
  std::vector<Case> all;
  const auto add = [&](int64_t rows, int64_t cols, int32_t copy, int32_t channel) {
    const bool scaled = copy == ESP_COPY_INT8 || random.below(4) != 0;
    all.push_back({rows, cols, static_cast<esp_dtype>(random.below(3)), copy, channel, scaled,
                   scaled && random.below(4) == 0, random.below(2) == 0, random.below(2) == 0});
  };
  const int64_t small[][2] = {{0, 5}, {3, 0}, {1, 1}, {1, 3}, {2, 4}, {3, 5}, {5, 33}, {9, 32}, {40, 7}};
  for (const auto& shape : small) {
    for (int i = 0; i < 3; i++)
      add(shape[0], shape[1], static_cast<int32_t>(random.below(5)), static_cast<int32_t>(random.below(3)));
  }
  if (setting.small) return all;
  // Rows that fit a piece: many, some, one; of no whole words; of one element; rows that do not fit; panels
  // and beyond.
  const int64_t large[][2] = {{20, 768}, {2, 4096}, {1, 6144}, {300, 36}, {90, 100}, {3000, 3},
                              {5000, 1}, {40, 257}, {3, 3999}, {2, 6148}, {1, 7001}, {2, 12300},
                              {49, 256}, {49, 516}, {52, 263}, {1, 6145}};
  for (int i = 0; i < 5; i++) {
    const auto& shape = large[(setting.seed * 5 + static_cast<uint64_t>(i)) % 16];
    add(shape[0], shape[1], static_cast<int32_t>(random.below(5)), static_cast<int32_t>(random.below(3)));
  }
  return all;
}

template <class Operation>
void put_non_finite(Subject<Operation>& subject, uint32_t word) {
  if (subject.n == 0) return;
  const bool wide = subject.host.gradient_dtype == ESP_F32;
  const uint16_t half = static_cast<uint16_t>(word >> 16);
  if (wide) {
    std::memcpy(subject.gradient.data(), &word, 4);
  } else {
    std::memcpy(subject.gradient.data(), &half, 2);
  }
  subject.mask[0] |= 1;
  subject.gate[0] |= 1;
}

// An empty list; weights that are not finite; steps that are skipped or refused, and those after them.
template <class Operation>
void test_unusual(const typename Operation::Options& plain, const typename Operation::Options& skipping,
                  const typename Operation::Options& clipped, Random& random) {
  Pair<Operation> none({}, skipping, random);
  none.run(1, 0);

  // A weight that is not finite gives its channel a scale that is none.
  Pair<Operation> broken({{6, 40, ESP_F32, ESP_COPY_F32, ESP_CHANNEL_ROW, true, false, false, true},
                          {6, 40, ESP_F32, ESP_COPY_INT8, ESP_CHANNEL_COLUMN, true, false, false, true},
                          {6, 64, ESP_F32, ESP_COPY_BF16, ESP_CHANNEL_COLUMN, true, false, true, true},
                          {2, 300, ESP_F32, ESP_COPY_F16, ESP_CHANNEL_TENSOR, true, false, true, false},
                          {1, 6200, ESP_F32, ESP_COPY_F16, ESP_CHANNEL_ROW, true, false, true, false}},
                         plain, random);
  for (Subject<Operation>& subject : broken.subjects()) {
    subject.weight[3] = std::nanf("");
    subject.weight[static_cast<size_t>(subject.n - 1)] = INFINITY;
    subject.upload();
  }
  broken.run(1, 0);

  // Skipped, and refused where clipping has no norm: nothing changes, nothing has started.
  for (const int32_t skipped : {1, ESP_STEP_REFUSED}) {
    Pair<Operation> pair({{5, 33, ESP_BF16, ESP_COPY_F32, ESP_CHANNEL_ROW, true, false, true, true},
                          {3, 700, ESP_F32, ESP_COPY_INT8, ESP_CHANNEL_COLUMN, true, false, true, true},
                          {1, 3, ESP_F32, ESP_COPY_NONE, ESP_CHANNEL_TENSOR, false, false, false, false}},
                         skipped == 1 ? skipping : clipped, random);
    put_non_finite(pair.subjects()[1], 0x7f800000);
    pair.subjects()[1].upload();
    pair.run(2, skipped);
    pair.subjects()[1].gradient.assign(pair.subjects()[1].gradient.size(), 0);
    pair.subjects()[1].upload();
    pair.run(3, 0);
  }
}

}  // namespace esp_test
