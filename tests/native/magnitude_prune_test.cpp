// magnitude_prune through the C ABI on heap buffers of the exact size, for ASAN and UBSAN, on every instruction set,
// against a sort. One list is laid out against the sampling, so that its bracket is known to miss.
#include "espalier/magnitude_prune.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "check.h"
#include "magnitude_prune_sample.h"

namespace {

uint32_t random_state = 1;
uint32_t next_random() { return random_state = random_state * 1664525u + 1013904223u; }
float uniform() { return static_cast<float>(next_random() >> 8) * 0x1p-24f; }

uint32_t key_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits &= 0x7fffffff;
  return bits > 0x7f800000 ? 0x7f800001 : bits;
}

// Calls f on every instruction set, with one thread and with three.
template <class F>
void on_every_variant(F f) {
  for (int32_t isa = ESP_ISA_SCALAR; isa <= esp_isa_best(); isa++) {
    CHECK(esp_isa_set(isa) == ESP_OK);
    for (int threads : {1, 3}) {
      CHECK(esp_threads_set(threads) == ESP_OK);
      f();
    }
  }
}

using Tensors = std::vector<std::vector<float>>;
using Bits = std::vector<std::vector<uint8_t>>;

bool bit(const std::vector<uint8_t>& bits, size_t i) { return (bits[i / 8] >> (i % 8) & 1) != 0; }

// What must be kept: all but the k smallest (key, position) of those that `earlier` keeps.
std::vector<bool> expected(const Tensors& w, const Bits* earlier, int64_t k) {
  std::vector<uint32_t> keys;
  std::vector<bool> keep;
  for (size_t t = 0; t < w.size(); t++) {
    for (size_t i = 0; i < w[t].size(); i++) {
      keys.push_back(key_of(w[t][i]));
      keep.push_back(earlier == nullptr || bit((*earlier)[t], i));
    }
  }
  std::vector<int64_t> order;
  for (size_t i = 0; i < keys.size(); i++) {
    if (keep[i]) order.push_back(static_cast<int64_t>(i));
  }
  std::nth_element(order.begin(), order.begin() + k, order.end(), [&](int64_t a, int64_t b) {
    return keys[a] != keys[b] ? keys[a] < keys[b] : a < b;
  });
  for (int64_t i = 0; i < k; i++) keep[order[i]] = false;
  return keep;
}

void check_list(const Tensors& w, const Bits* earlier, int64_t k, const std::vector<bool>& keep) {
  Tensors out = w;
  Bits masks;
  std::vector<esp_prune_tensor> list;
  for (const std::vector<float>& x : w) masks.emplace_back((x.size() + 7) / 8, 0xa5);
  for (size_t t = 0; t < w.size(); t++) {
    list.push_back({out[t].data(), out[t].data(), earlier == nullptr ? nullptr : (*earlier)[t].data(), masks[t].data(),
                    static_cast<int64_t>(w[t].size()), 0, 0, ESP_F32});
  }
  const esp_prune_rule rule = {ESP_PRUNE_COUNT, ESP_PRUNE_GLOBAL, 0, k, 0, 0, 0};
  esp_prune_result result;
  std::vector<int64_t> pruned(w.size());
  CHECK(esp_magnitude_prune(list.data(), static_cast<int64_t>(list.size()), &rule, &result, pruned.data()) == ESP_OK);
  size_t flat = 0;
  int64_t wrong = 0, zeroed = 0;
  for (size_t t = 0; t < w.size(); t++) {
    int64_t here = 0;
    for (size_t i = 0; i < w[t].size(); i++, flat++) {
      const float want = keep[flat] ? w[t][i] : 0.0f;
      wrong += std::memcmp(&out[t][i], &want, 4) != 0;
      wrong += bit(masks[t], i) != keep[flat];
      here += !keep[flat];
    }
    if (w[t].size() % 8 != 0) wrong += masks[t].back() >> (w[t].size() % 8) != 0;
    wrong += pruned[t] != here;
    zeroed += here;
  }
  CHECK(wrong == 0);
  CHECK(result.pruned == zeroed);
  CHECK(result.total == static_cast<int64_t>(flat));
}
void check_list(const Tensors& w, const Bits* earlier, int64_t k) {
  const std::vector<bool> keep = expected(w, earlier, k);
  on_every_variant([&] { check_list(w, earlier, k, keep); });
}

std::vector<float> normal_like(size_t n) {
  std::vector<float> x(n);
  for (float& v : x) v = (uniform() + uniform() + uniform() + uniform() - 2.0f) * 0.05f;
  return x;
}

void every_size() {
  for (int n : {0, 1, 15, 16, 17, 31, 33, 1003, 16384, 16385, 40001}) {
    for (int64_t k : {0, 1, n / 3, n - 1, n}) {
      if (k < 0 || k > n) continue;
      check_list({normal_like(static_cast<size_t>(n))}, nullptr, k);
    }
  }
}

void with_an_earlier_mask() {
  const Tensors w = {normal_like(70001), {}, normal_like(7), normal_like(90016)};
  Bits earlier;
  int64_t remaining = 0;
  for (const std::vector<float>& x : w) {
    std::vector<uint8_t> bits((x.size() + 7) / 8);
    for (uint8_t& b : bits) b = static_cast<uint8_t>(next_random() >> 13);
    for (size_t i = 0; i < x.size(); i++) remaining += bit(bits, i);
    earlier.push_back(bits);
  }
  for (int64_t k : {int64_t{0}, int64_t{1}, remaining / 2, remaining - 1, remaining}) check_list(w, &earlier, k);
}

void heavy_ties() {
  std::vector<float> grid(150007), zeros(grid.size()), equal(grid.size(), -0.5f), rare(grid.size(), 1.0f);
  for (size_t i = 0; i < grid.size(); i++) {
    grid[i] = std::rint(uniform() * 20.0f - 10.0f) * 0.01f;
    zeros[i] = uniform() < 0.5f ? (i % 2 == 0 ? 0.0f : -0.0f) : uniform();
    if (i % 1000 == 0) rare[i] = uniform();
  }
  for (double p : {0.001, 0.1, 0.4999, 0.5, 0.77, 0.999}) {
    const int64_t k = static_cast<int64_t>(p * static_cast<double>(grid.size()));
    for (const std::vector<float>& x : {grid, zeros, equal, rare}) check_list({x}, nullptr, k);
  }
}

// Sampled lines hold other values than the rest: the k-th lies below, above or far inside the bracket.
void missed_brackets() {
  const int64_t n = 1 << 20, lines = esp::prune_sample_lines(n, (1 << 18) + n * 4 / 50 / 4);
  std::vector<float> w = normal_like(static_cast<size_t>(n));
  for (float sampled : {1.0f, 1e-30f}) {
    std::vector<float> x = w;
    for (int64_t line = 0; line < lines; line++) {
      const int64_t start = esp::prune_sample_position(n, lines, line) / 16 * 16;
      for (int64_t i = start; i < start + 16; i++) x[i] = sampled * (1.0f + uniform());
    }
    for (double p : {0.01, 0.5, 0.99}) check_list({x}, nullptr, static_cast<int64_t>(p * static_cast<double>(n)));
  }
  // The sample spreads evenly, everything else crowds just inside its middle: more than the scratch memory holds.
  std::vector<float> crowd(static_cast<size_t>(n));
  for (float& v : crowd) v = 0.5f + uniform() * 1e-3f;
  for (int64_t line = 0; line < lines; line++) {
    const int64_t start = esp::prune_sample_position(n, lines, line) / 16 * 16;
    for (int64_t i = start; i < start + 16; i++) crowd[i] = uniform();
  }
  check_list({crowd}, nullptr, n / 2);
}

void special_values() {
  std::vector<float> x(100003);
  for (size_t i = 0; i < x.size(); i++) {
    x[i] = i % 7 == 0 ? NAN : i % 11 == 0 ? -INFINITY : i % 5 == 0 ? uniform() * 1e-40f : uniform() - 0.5f;
  }
  const uint32_t loud = 0xff800001;  // a signalling NaN keeps its bits
  std::memcpy(&x[49], &loud, 4);
  for (double p : {0.1, 0.3, 0.8, 0.86, 0.999, 1.0}) {
    check_list({x}, nullptr, static_cast<int64_t>(p * static_cast<double>(x.size())));
  }
}

void patterns() {
  for (int group : {1, 2, 3, 4, 8, 16, 32, 64}) {
    for (int64_t inner : {1, 2, 9, 16, 33}) {
      const int64_t axis = group * 3, n = 5 * axis * inner;
      std::vector<float> w = normal_like(static_cast<size_t>(n)), out(w.size());
      w[0] = NAN;
      for (size_t i = 1; i < w.size(); i += 3) w[i] = 0.25f;
      std::vector<uint8_t> mask((w.size() + 7) / 8, 0xff);
      const int keep = (group + 1) / 2;
      const esp_prune_rule rule = {ESP_PRUNE_PATTERN, 0, 0, 0, 0, keep, group};
      const esp_prune_tensor tensor = {w.data(), out.data(), nullptr, mask.data(), n, axis, inner, ESP_F32};
      esp_prune_result result;
      CHECK(esp_magnitude_prune(&tensor, 1, &rule, &result, nullptr) == ESP_OK);
      CHECK(result.pruned == n / group * (group - keep));
      int64_t wrong = 0;
      for (int64_t block = 0; block < n; block += group * inner) {
        for (int64_t column = 0; column < inner; column++) {
          std::vector<int64_t> order;
          for (int64_t j = 0; j < group; j++) order.push_back(block + j * inner + column);
          std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key_of(w[a]) < key_of(w[b]); });
          for (int64_t j = 0; j < group; j++) {
            const size_t i = static_cast<size_t>(order[j]);
            const float want = j < group - keep ? 0.0f : w[i];
            wrong += std::memcmp(&out[i], &want, 4) != 0;
            wrong += bit(mask, i) != (j >= group - keep);
          }
        }
      }
      if (w.size() % 8 != 0) wrong += mask.back() >> (w.size() % 8) != 0;
      CHECK(wrong == 0);
    }
  }
}

void refusals() {
  float w[8] = {};
  esp_prune_tensor tensor = {w, w, nullptr, nullptr, 8, 8, 1, ESP_F32};
  esp_prune_result result;
  const auto refused = [&](const esp_prune_rule& rule, const char* words) {
    CHECK(esp_magnitude_prune(&tensor, 1, &rule, &result, nullptr) == ESP_INVALID_ARGUMENT);
    CHECK(std::strstr(esp_last_error(), words) != nullptr);
  };
  refused({ESP_PRUNE_AMOUNT, 0, 1.5, 0, 0, 0, 0}, "a fraction of 1.5");
  refused({ESP_PRUNE_AMOUNT, 0, NAN, 0, 0, 0, 0}, "0 to 1 is needed");
  refused({ESP_PRUNE_AMOUNT, 2, 0.5, 0, 0, 0, 0}, "scope 2");
  refused({ESP_PRUNE_COUNT, 0, 0, 9, 0, 0, 0}, "9 weights to prune, 8 remain");
  refused({ESP_PRUNE_COUNT, 0, 0, -1, 0, 0, 0}, "-1 weights to prune");
  refused({ESP_PRUNE_THRESHOLD, 0, 0, 0, -1.0f, 0, 0}, "threshold -1");
  refused({ESP_PRUNE_PATTERN, 0, 0, 0, 0, 3, 2}, "pattern 3:2");
  refused({ESP_PRUNE_PATTERN, 0, 0, 0, 0, 2, 3}, "tensor 0: an axis of 8, which groups of 3 do not divide");
  refused({7, 0, 0, 0, 0, 0, 0}, "kind 7");
  tensor.dtype = 9;
  refused({ESP_PRUNE_AMOUNT, 0, 0.5, 0, 0, 0, 0}, "element type 9");
}

}  // namespace

int main() {
  every_size();
  with_an_earlier_mask();
  heavy_ties();
  missed_brackets();
  special_values();
  on_every_variant([] {
    random_state = 1;
    patterns();
    refusals();
  });
  return finish();
}
