// What the tests of optimizer steps share: tensors on heap buffers of exactly their size, so that ASAN sees
// any access beside them: every working copy and channel, gradient types, shapes around vectors and pieces.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "espalier/common.h"
#include "espalier/step_result.h"
#include "espalier/working_copy.h"

namespace {

// Bytes that no neighbour shares: each its own allocation, never rounded up.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes), data_(new uint8_t[bytes]()) {}
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  bool operator==(const Buffer& other) const {
    return bytes_ == other.bytes_ && std::memcmp(data_.get(), other.data_.get(), bytes_) == 0;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  std::unique_ptr<uint8_t[]> data_;
};

uint32_t random_bits(uint32_t* state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  *state ^= *state << 5;
  return *state;
}

struct Case {
  int64_t rows, cols;
  esp_dtype gradient;
  int32_t copy, channel;
  bool scaled, given, bits;
};

// One tensor with all that belongs to it, but for the moments of its operation.
template <class Tensor>
struct StepSubject {
  StepSubject(const Case& c, uint32_t seed)
      : n(c.rows * c.cols),
        weight(4 * n),
        gradient((c.gradient == ESP_F32 ? 4 : 2) * n),
        mask((n + 7) / 8),
        gate((n + 7) / 8),
        copy((c.copy == ESP_COPY_F32    ? 4
              : c.copy == ESP_COPY_INT8 ? 1
              : c.copy == ESP_COPY_NONE ? 0
                                        : 2) *
             n),
        scale(4 * (c.channel == ESP_CHANNEL_TENSOR ? 1
                   : c.channel == ESP_CHANNEL_ROW  ? c.rows
                                                   : c.cols)) {
    for (int64_t i = 0; i < n; i++) {
      weight.as<float>()[i] = static_cast<float>(static_cast<int32_t>(random_bits(&seed))) * 0x1p-31f;
      const float g = static_cast<float>(static_cast<int32_t>(random_bits(&seed))) * 0x1p-31f;
      if (c.gradient == ESP_F32) {
        gradient.as<float>()[i] = g;
      } else {
        uint32_t word;
        std::memcpy(&word, &g, 4);  // its upper half is a bf16, and finite as a half float too
        gradient.as<uint16_t>()[i] = static_cast<uint16_t>(word >> 16);
      }
    }
    for (size_t i = 0; i < mask.bytes(); i++)
      mask.as<uint8_t>()[i] = static_cast<uint8_t>(random_bits(&seed));
    for (size_t i = 0; i < gate.bytes(); i++)
      gate.as<uint8_t>()[i] = static_cast<uint8_t>(random_bits(&seed));
    for (size_t i = 0; i < scale.bytes() / 4; i++) scale.as<float>()[i] = 0.004f;
    tensor = {};
    tensor.weight = weight.as<float>();
    tensor.gradient = gradient.as<void>();
    tensor.mask = c.bits ? mask.as<uint8_t>() : nullptr;
    tensor.gate = c.bits ? gate.as<uint8_t>() : nullptr;
    tensor.working_copy = c.copy == ESP_COPY_NONE ? nullptr : copy.as<void>();
    tensor.scale = c.scaled ? scale.as<float>() : nullptr;
    tensor.rows = c.rows;
    tensor.cols = c.cols;
    tensor.gradient_dtype = c.gradient;
    tensor.working_copy_type = c.copy;
    tensor.channel = c.channel;
    tensor.scale_given = c.given;
  }

  bool operator==(const StepSubject& other) const {
    return weight == other.weight && gate == other.gate && copy == other.copy && scale == other.scale;
  }

  int64_t n;
  Buffer weight, gradient, mask, gate, copy, scale;
  Tensor tensor;
};

std::vector<Case> cases() {
  // Nothing; one; around a vector; rows that start inside a byte; whole vectors; more than a piece; rows
  // beyond the cache.
  const int64_t shapes[][2] = {{0, 5},     {1, 1},     {1, 15},        {1, 17},   {3, 5},
                               {9, 16},    {7, 33},    {40, 64},       {129, 65}, {3, 4099},
                               {70, 1040}, {1, 70001}, {2, 65536 + 16}};
  std::vector<Case> all;
  int turn = 0;
  for (const auto& shape : shapes) {
    for (int32_t copy = ESP_COPY_NONE; copy <= ESP_COPY_INT8; copy++) {
      for (int32_t channel = ESP_CHANNEL_TENSOR; channel <= ESP_CHANNEL_COLUMN; channel++, turn++) {
        const bool scaled = copy == ESP_COPY_INT8 || turn % 4 != 0;
        all.push_back(
            {shape[0], shape[1], turn % 3, copy, channel, scaled, scaled && turn % 5 == 0, turn % 2 == 0});
      }
    }
  }
  return all;
}

// Two steps with everything on, one with noise, then one that is skipped, on all cases. An Operation says:
// - Tensor, Options, Subject; step: its function
// - everything(): its options
// - restart(tensor): before the step that is skipped; unchanged(tensor): whether it has changed nothing
template <class Operation>
std::vector<typename Operation::Subject> run(int32_t isa, int32_t threads) {
  CHECK(esp_isa_set(isa) == ESP_OK);
  CHECK(esp_threads_set(threads) == ESP_OK);
  std::vector<typename Operation::Subject> subjects;
  std::vector<typename Operation::Tensor> list;
  uint32_t seed = 1;
  for (const Case& c : cases()) {
    subjects.emplace_back(c, seed++);
    list.push_back(subjects.back().tensor);
  }
  const int64_t count = static_cast<int64_t>(list.size());
  typename Operation::Options options = Operation::everything();
  esp_step_result result;
  for (int step = 0; step < 3; step++) {
    options.noise = {step < 2 ? 0 : 0.5, 4, -7, INT64_MAX - 100};  // its counter overflows on the way
    CHECK(Operation::step(list.data(), count, &options, &result) == ESP_OK);
    CHECK(!result.skipped && result.clip_factor < 1 && result.non_finite == 0 &&
          result.non_finite_channels == 0);
  }
  list.back().mask = nullptr;
  list.back().gate = nullptr;
  const_cast<uint16_t*>(static_cast<const uint16_t*>(list.back().gradient))[1] =
      0x7f80;  // beyond every float type
  for (auto& t : list) Operation::restart(t);
  CHECK(Operation::step(list.data(), count, &options, &result) == ESP_OK);
  CHECK(result.skipped && result.non_finite == 1);
  for (const auto& t : list) CHECK(Operation::unchanged(t));
  return subjects;
}

// All instruction sets and several threads agree in every bit.
template <class Operation>
void check_variants() {
  const auto expected = run<Operation>(ESP_ISA_SCALAR, 1);
  for (int32_t isa = ESP_ISA_SCALAR; isa <= esp_isa_best(); isa++) {
    for (int32_t threads : {1, 3}) {
      if (isa == ESP_ISA_SCALAR && threads == 1) continue;  // that is what is expected
      const auto actual = run<Operation>(isa, threads);
      for (size_t i = 0; i < expected.size(); i++) CHECK(actual[i] == expected[i]);
    }
  }
}

// One element, with room for the operation's state, and what is said of it where it is wrong.
template <class Operation>
struct Arguments {
  explicit Arguments(const typename Operation::Options& given) : good(given), options(given) {
    tensor = {};
    tensor.weight = &value;
    tensor.gradient = &value;
    tensor.rows = tensor.cols = 1;
  }
  bool refused(const char* what) {
    const bool is = Operation::step(&tensor, 1, &options, &result) == ESP_INVALID_ARGUMENT &&
                    std::strstr(esp_last_error(), what) != nullptr;
    if (!is) std::printf("%s\n", esp_last_error());
    options = good;
    return is;
  }
  // What every operation refuses, once the tensor has the state that it needs.
  void check_common() {
    CHECK(Operation::step(&tensor, 1, &options, nullptr) == ESP_INVALID_ARGUMENT);
    CHECK(Operation::step(nullptr, 1, &options, &result) == ESP_INVALID_ARGUMENT);
    CHECK(Operation::step(&tensor, -1, &options, &result) == ESP_INVALID_ARGUMENT);
    options.learning_rate = NAN;
    CHECK(refused("learning rate nan"));
    options.noise = {-1, 1, 0, 0};
    CHECK(refused("noise of deviation -1"));
    options.noise = {1, 0, 0, 0};
    CHECK(refused("divisor 0"));
    tensor.rows = INT64_MAX / 2;
    tensor.cols = 3;
    CHECK(refused("rows of 3"));
    tensor.rows = tensor.cols = 1;
    tensor.working_copy_type = ESP_COPY_F32;
    CHECK(refused("no working copy"));
    tensor.working_copy_type = 9;
    CHECK(refused("working copy type 9"));
    tensor.working_copy_type = ESP_COPY_INT8;
    tensor.working_copy = &value;
    CHECK(refused("has no scale"));
    tensor.channel = 3;
    CHECK(refused("channel 3"));
    CHECK(value == 1);
  }

  float value = 1;
  typename Operation::Tensor tensor;
  const typename Operation::Options good;
  typename Operation::Options options;
  esp_step_result result;
};

}  // namespace
