// Tensors of optimizer steps on heap buffers of exactly their size, so that ASAN sees any access beside them:
// every working copy and channel, gradient types, shapes around vectors and pieces.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "espalier/common.h"
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

}  // namespace
