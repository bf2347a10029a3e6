// magnitude_prune on a device prunes the CPU's weights: every kind of rule and scope, element types, masks
// read and written in place, sizes around a word of bits and a chunk (8192), lists above 65,536 weights
// (which are sampled), ties by the thousand, brackets that miss, a chunk that holds all of the bracket, NaN,
// infinity, denormals; patterns along the last and along other axes.
#include "espalier/cuda/magnitude_prune.h"

#include <cmath>

#include "../../cuda/kernels/magnitude_prune.h"
#include "device_test.h"

namespace {

using namespace esp_test;

void put(std::vector<uint8_t>& bytes, int64_t i, float value, esp_dtype dtype) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  uint16_t half = static_cast<uint16_t>(word >> 16);
  if (dtype == ESP_F16) {  // sign, 5 bits of exponent, 10 of fraction, without rounding
    const int exponent = static_cast<int>(word >> 23 & 255) - 112;
    half = static_cast<uint16_t>((word >> 16 & 0x8000) |
                                 (exponent <= 0    ? word >> 14 & 0x3ff
                                  : exponent >= 31 ? 0x7c00 | (value != value)
                                                   : exponent << 10 | (word >> 13 & 0x3ff)));
  }
  if (dtype == ESP_F32) {
    std::memcpy(bytes.data() + i * 4, &word, 4);
  } else {
    std::memcpy(bytes.data() + i * 2, &half, 2);
  }
}

enum class Output { in_place, elsewhere, mask_alone, weights_alone };

struct Subject {
  Subject(std::vector<uint8_t> data, esp_dtype dtype, bool masked, Output output, Random& random)
      : weights(std::move(data)),
        n(static_cast<int64_t>(weights.size()) / size_of(dtype)),
        mask(static_cast<size_t>((n + 7) / 8)),
        out(weights.size(), 0xaa),
        mask_out(mask.size(), 0xaa),
        device_weights(static_cast<int64_t>(weights.size()),
                       random.below(3) == 0 ? random.below(8) * size_of(dtype) : 0),
        device_out(static_cast<int64_t>(out.size()),
                   random.below(3) == 0 ? random.below(8) * size_of(dtype) : 0),
        device_mask(static_cast<int64_t>(mask.size()), random.below(4)),
        device_mask_out(static_cast<int64_t>(mask.size()), random.below(4)) {
    for (uint8_t& bits : mask) bits = static_cast<uint8_t>(random.bits() | random.bits());
    host = {weights.data(), nullptr, masked ? mask.data() : nullptr, nullptr, n, 0, 0, dtype};
    device = {device_weights.get(), nullptr, masked ? device_mask.get() : nullptr, nullptr, n, 0, 0, dtype};
    if (output != Output::mask_alone) {
      host.out = output == Output::elsewhere ? out.data() : weights.data();
      device.out = output == Output::elsewhere ? device_out.get() : device_weights.get();
    }
    if (output != Output::weights_alone) {
      const bool same = masked && output == Output::in_place;
      host.mask_out = same ? mask.data() : mask_out.data();
      device.mask_out = same ? device_mask.get() : device_mask_out.get();
    }
    upload();
  }
  void upload() {
    device_weights.set(weights);
    device_out.set(out);
    device_mask.set(mask);
    device_mask_out.set(mask_out);
  }
  bool same() const {
    return device_weights.values() == weights && device_out.values() == out && device_mask.values() == mask &&
           device_mask_out.values() == mask_out;
  }

  std::vector<uint8_t> weights;
  int64_t n;
  std::vector<uint8_t> mask, out, mask_out;
  Device<uint8_t> device_weights, device_out, device_mask, device_mask_out;
  esp_prune_tensor host, device;
};

// What a tensor is filled with.
enum class Values { spread, few, same, special, steps, repeated };

float value_of(Values values, int64_t i, Random& random) {
  switch (values) {
    case Values::few:
      return static_cast<float>(random.below(5) - 2) * 0.25f;
    case Values::same:
      return random.below(2) == 0 ? 1.0f : -1.0f;
    case Values::special:
      switch (random.below(8)) {
        case 0:
          return std::nanf("");
        case 1:
          return INFINITY;
        case 2:
          return -0.0f;
        case 3:
          return 1e-40f;
        default:
          return random.uniform();
      }
    case Values::steps:
      return static_cast<float>(i / 3000) + 1;  // a bracket that a chunk holds whole
    case Values::repeated:
      return static_cast<float>(i * 7919 % 21847) + 1;  // ties inside the bracket, far from each other
    default:
      return random.uniform() * random.uniform();
  }
}

std::vector<uint8_t> data_of(int64_t n, esp_dtype dtype, Values values, Random& random) {
  std::vector<uint8_t> bytes(static_cast<size_t>(n * size_of(dtype)));
  for (int64_t i = 0; i < n; i++) put(bytes, i, value_of(values, i, random), dtype);
  return bytes;
}

void report(const esp_prune_rule& rule, const std::vector<Subject>& subjects) {
  std::printf("  kind %d scope %d amount %g count %lld keep %d group %d, %zu tensors\n", rule.kind,
              rule.scope, rule.amount, static_cast<long long>(rule.count), rule.keep, rule.group,
              subjects.size());
}

// The same calls on both sides; an iterated prune is several.
void compare(std::vector<Subject>& subjects, const esp_prune_rule& rule, int times = 1) {
  std::vector<esp_prune_tensor> host, device;
  for (Subject& subject : subjects) {
    host.push_back(subject.host);
    device.push_back(subject.device);
  }
  const int64_t count = static_cast<int64_t>(host.size());
  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_magnitude_prune_plan(device.data(), count, &rule, plan, table);
  });
  const Device<esp_prune_result> result(1);
  const Device<int64_t> pruned(count);
  const Stream stream;
  const auto run = [&] {
    return esp_cuda_magnitude_prune(&planned.plan, planned.table(), planned.workspace(), &rule, result.get(),
                                    pruned.get(), stream.get());
  };
  esp_prune_result expected = {};
  std::vector<int64_t> expected_pruned(static_cast<size_t>(count));
  for (int i = 0; i < times; i++) {
    CHECK(esp_magnitude_prune(host.data(), count, &rule, &expected, expected_pruned.data()) == ESP_OK);
  }
  bool right = times > 1 ? run_captured(stream, times, run) : run() == ESP_OK && stream.wait();
  const esp_prune_result found = result.values()[0];
  right = right && found.total == expected.total && found.pruned == expected.pruned &&
          pruned.values() == expected_pruned;
  right = right && (std::memcmp(&found.threshold, &expected.threshold, 4) == 0 ||
                    (found.threshold != found.threshold && expected.threshold != expected.threshold));
  for (const Subject& subject : subjects) right = right && subject.same();
  CHECK(right);
  if (!right) {
    report(rule, subjects);
    std::printf("  pruned %lld, %lld expected; threshold %g, %g\n", static_cast<long long>(found.pruned),
                static_cast<long long>(expected.pruned), static_cast<double>(found.threshold),
                static_cast<double>(expected.threshold));
  }
}

esp_prune_rule rule_of(int32_t kind, int32_t scope, double amount) {
  esp_prune_rule rule = {};
  rule.kind = kind;
  rule.scope = scope;
  rule.amount = amount;
  return rule;
}

std::vector<Subject> list_of(const std::vector<int64_t>& sizes, int dtypes, Values values, int masked,
                             Random& random) {
  std::vector<Subject> subjects;
  subjects.reserve(sizes.size());
  for (const int64_t n : sizes) {
    const esp_dtype dtype = dtypes == 3 ? static_cast<esp_dtype>(random.below(3)) : dtypes;
    subjects.emplace_back(data_of(n, dtype, values, random), dtype,
                          masked == 1 || (masked == 2 && random.below(2) == 0),
                          static_cast<Output>(random.below(4)), random);
  }
  return subjects;
}

void test_small(const Setting& setting, Random& random) {
  const Values kinds[] = {Values::spread, Values::few, Values::same, Values::special};
  const double amounts[] = {0, 0.3, 0.5, 0.999, 1};
  for (int turn = 0; turn < (setting.small ? 3 : 12); turn++) {
    std::vector<int64_t> sizes = {0, 1, 31, 33, 257};
    if (!setting.small && turn % 3 == 0) sizes.insert(sizes.end(), {8191, 8193, 20000});
    std::vector<Subject> subjects =
        list_of(sizes, 3, kinds[random.below(4)], static_cast<int>(random.below(3)), random);
    esp_prune_rule rule = rule_of(static_cast<int32_t>(random.below(4)),
                                  static_cast<int32_t>(random.below(2)), amounts[random.below(5)]);
    rule.count = rule.scope == ESP_PRUNE_GLOBAL ? 100 : 0;
    rule.threshold = 0.2f;
    compare(subjects, rule, 1 + static_cast<int>(turn % 2 == 0 && rule.kind != ESP_PRUNE_COUNT));
  }
  std::vector<Subject> none;
  compare(none, rule_of(ESP_PRUNE_AMOUNT, ESP_PRUNE_GLOBAL, 0.5));
  compare(none, rule_of(ESP_PRUNE_AMOUNT, ESP_PRUNE_TENSOR, 0.5));
  std::vector<Subject> empty = list_of({0, 0}, ESP_F32, Values::spread, 0, random);
  compare(empty, rule_of(ESP_PRUNE_AMOUNT, ESP_PRUNE_TENSOR, 0.5));
}

// Lists that are sampled, and lists of 16 bits as long.
void test_large(const Setting& setting, Random& random) {
  const double amounts[] = {0.5, 0.9, 0.00001, 0.99999, 0.1, 1};
  const double amount = amounts[setting.seed % 6];
  const Values kinds[] = {Values::spread, Values::steps, Values::few, Values::same, Values::special};
  const Values kind = kinds[setting.seed % 5];
  if (setting.small) {
    std::vector<Subject> one =
        list_of({65000, 537}, ESP_F32, setting.seed % 2 == 0 ? Values::few : Values::repeated, 0, random);
    return compare(one, rule_of(ESP_PRUNE_AMOUNT, ESP_PRUNE_GLOBAL, 0.5));
  }
  std::vector<Subject> subjects = list_of({70000, 5, 30011, 100}, setting.seed % 3 == 0 ? 3 : ESP_F32, kind,
                                          static_cast<int>(setting.seed % 4 == 3 ? 2 : 0), random);
  compare(subjects,
          rule_of(setting.seed % 2 == 0 ? ESP_PRUNE_AMOUNT : ESP_PRUNE_SPARSITY, ESP_PRUNE_GLOBAL, amount),
          setting.seed % 4 == 1 ? 2 : 1);
  if (setting.seed % 4 == 0) {
    std::vector<Subject> halves =
        list_of({66000, 9000}, setting.seed % 8 == 0 ? ESP_BF16 : ESP_F16, kind, 0, random);
    compare(halves, rule_of(ESP_PRUNE_AMOUNT, ESP_PRUNE_GLOBAL, amount));
  }
  // More chunks than the blocks have warps, and 15 equals of which the last stays.
  if (setting.seed % 5 == 1) {
    std::vector<Subject> repeated = list_of({15 * 21847}, ESP_F32, Values::repeated, 0, random);
    esp_prune_rule rule = rule_of(ESP_PRUNE_COUNT, ESP_PRUNE_GLOBAL, 0);
    rule.count = 15 * 10000 - 1;
    compare(repeated, rule);
  }
  // Regular places fool the sample: only the stretches that no sample hits are small. The bracket misses.
  if (setting.seed % 5 == 0) {
    std::vector<uint8_t> bytes(static_cast<size_t>(300000) * 4);
    for (int64_t i = 0; i < 300000; i++) put(bytes, i, 1.0f + static_cast<float>(i) * 1e-6f, ESP_F32);
    for (int64_t i = 0; i < 300000; i++) {
      const int64_t stretch = 300000 / esp::prune_samples;
      uint64_t mixed = (static_cast<uint64_t>(i / stretch) + 1) * 0x9e3779b97f4a7c15u;
      mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
      mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
      mixed ^= mixed >> 31;
      if (i / stretch >= esp::prune_samples ||
          i % stretch != static_cast<int64_t>(mixed % static_cast<uint64_t>(stretch))) {
        put(bytes, i, static_cast<float>(i) * 1e-6f, ESP_F32);
      }
    }
    std::vector<Subject> fooled;
    fooled.reserve(1);
    fooled.emplace_back(bytes, ESP_F32, false, Output::in_place, random);
    compare(fooled, rule_of(ESP_PRUNE_AMOUNT, ESP_PRUNE_GLOBAL, 0.2));
  }
}

// Blocks (there are three of them here) walk several chunks of several tensors: what one leaves in shared
// memory must not reach the next. Ties and spread values, so that bins, collected keys and tied chunks are
// all walked.
void test_walks(const Setting& setting, Random& random) {
  static_assert(esp::prune_chunk == 8192, "sizes below are some chunks");
  for (const int32_t scope : {ESP_PRUNE_GLOBAL, ESP_PRUNE_TENSOR}) {
    for (const Values values : {Values::spread, Values::few}) {
      if (setting.small && (setting.seed % 2 == 0) == (values == Values::few)) continue;
      std::vector<Subject> subjects =
          list_of({9000, 300, 25000, 8193, 20000, 9}, setting.seed % 3 == 0 ? 3 : ESP_F32, values, 2, random);
      compare(subjects, rule_of(ESP_PRUNE_AMOUNT, scope, 0.5), 2);
    }
  }
}

void test_patterns(const Setting& setting, Random& random) {
  const int64_t shapes[][3] = {{64, 64, 1},         {1024, 256, 1}, {960, 96, 5},
                               {6 * 32 * 9, 32, 9}, {2304, 32, 72}, {64, 64, 1}};
  const int32_t groups[][2] = {{1, 2}, {2, 4}, {4, 8}, {3, 16}, {5, 32}, {1, 1}, {2, 2}, {60, 64}};
  for (int turn = 0; turn < (setting.small ? 2 : 6); turn++) {
    const int32_t* const group = groups[random.below(8)];
    std::vector<Subject> subjects;
    subjects.reserve(3);
    for (int i = 0; i < 3; i++) {
      const int64_t* shape = shapes[random.below(setting.small ? 1 : 6)];
      if (shape[1] % group[1] != 0) shape = shapes[0];
      const esp_dtype dtype = static_cast<esp_dtype>(random.below(3));
      subjects.emplace_back(
          data_of(shape[0], dtype, random.below(3) == 0 ? Values::few : Values::spread, random), dtype,
          random.below(2) == 0, static_cast<Output>(random.below(4)), random);
      subjects.back().host.axis = subjects.back().device.axis = shape[1];
      subjects.back().host.inner = subjects.back().device.inner = shape[2];
    }
    esp_prune_rule rule = rule_of(ESP_PRUNE_PATTERN, 0, 0);
    rule.keep = group[0];
    rule.group = group[1];
    compare(subjects, rule, 1);
  }
}

// More than what remains: nothing changes, and the next call works.
void test_too_many(Random& random) {
  std::vector<Subject> subjects = list_of({100, 300}, ESP_F32, Values::spread, 1, random);
  const std::vector<uint8_t> before = subjects[1].weights;
  std::vector<esp_prune_tensor> device = {subjects[0].device, subjects[1].device};
  esp_prune_rule rule = rule_of(ESP_PRUNE_COUNT, ESP_PRUNE_GLOBAL, 0);
  rule.count = 400;
  const Planned planned([&](esp_cuda_plan* plan, void* table) {
    return esp_cuda_magnitude_prune_plan(device.data(), 2, &rule, plan, table);
  });
  const Device<esp_prune_result> result(1);
  for (const int64_t count : {int64_t{400}, int64_t{50}}) {
    rule.count = count;
    CHECK(esp_cuda_magnitude_prune(&planned.plan, planned.table(), planned.workspace(), &rule, result.get(),
                                   nullptr, nullptr) == ESP_OK);
    if (count == 400) CHECK(result.values()[0].pruned == -1 && subjects[1].device_weights.values() == before);
  }
  std::vector<esp_prune_tensor> host = {subjects[0].host, subjects[1].host};
  esp_prune_result expected;
  CHECK(esp_magnitude_prune(host.data(), 2, &rule, &expected, nullptr) == ESP_OK);
  CHECK(result.values()[0].pruned == expected.pruned && subjects[0].same() && subjects[1].same());
}

#if !defined(ESP_ON_GPU)
// The last two chunks of 3e9 weights, where indices need 64 bits: a plan of all whose table begins with them.
void test_far(const esp_prune_rule& rule) {
  constexpr int64_t n = 3000000008, chunks = (n - 1) / esp::prune_chunk + 1,
                    start = (chunks - 2) * esp::prune_chunk;
  const Sparse<uint8_t> weights(n * 2), mask(n / 8);
  if (checks_failed > 0) return;
  Random random(9);
  std::vector<uint8_t> here(static_cast<size_t>(2 * (n - start))), bits(static_cast<size_t>((n - start) / 8));
  for (int64_t i = 0; i < n - start; i++) put(here, i, random.uniform(), ESP_BF16);
  std::memcpy(weights.get() + 2 * start, here.data(), here.size());
  const esp_prune_tensor host = {here.data(), here.data(), nullptr, bits.data(),
                                 n - start,   n - start,   1,       ESP_BF16};
  esp_prune_result expected;
  CHECK(esp_magnitude_prune(&host, 1, &rule, &expected, nullptr) == ESP_OK);
  const esp_prune_tensor there = {weights.get(), weights.get(), nullptr, mask.get(), n, n, 1, ESP_BF16};
  esp_cuda_plan plan = {};
  CHECK(esp_cuda_magnitude_prune_plan(&there, 1, &rule, &plan, nullptr) == ESP_OK);
  std::vector<char> bytes(static_cast<size_t>(plan.table_bytes));
  CHECK(esp_cuda_magnitude_prune_plan(&there, 1, &rule, &plan, bytes.data()) == ESP_OK);
  CHECK(plan.operation[esp::prune_chunks] == chunks && plan.operation[esp::prune_decisions] == n);
  auto* const chunk =
      reinterpret_cast<esp::PruneChunk*>(bytes.data() + bytes.size()) - chunks;  // they end the table
  CHECK(chunk[chunks - 1].tensor == 0 && chunk[chunks - 1].index == chunks - 1);
  chunk[0] = chunk[chunks - 2];
  chunk[1] = chunk[chunks - 1];
  plan.operation[esp::prune_chunks] = 2;
  const Device<char> table(bytes), workspace(plan.workspace_bytes);
  workspace.zero();
  const Device<esp_prune_result> result(1);
  CHECK(esp_cuda_magnitude_prune(&plan, table.get(), workspace.get(), &rule, result.get(), nullptr,
                                 nullptr) == ESP_OK);
  CHECK(esp_cuda_stream_synchronize(nullptr) == ESP_OK);
  CHECK(std::memcmp(weights.get() + 2 * start, here.data(), here.size()) == 0);
  CHECK(std::memcmp(mask.get() + start / 8, bits.data(), bits.size()) == 0);
  CHECK(result.values()[0].pruned == expected.pruned);
}
#endif

void test(const Setting& setting) {
  Random random(setting.seed);
  test_small(setting, random);
  test_large(setting, random);
  test_walks(setting, random);
  test_patterns(setting, random);
  test_too_many(random);
#if !defined(ESP_ON_GPU)
  if (setting.seed == 1 && !setting.small) {
    esp_prune_rule rule = {};
    rule.kind = ESP_PRUNE_THRESHOLD;
    rule.threshold = 0.4f;
    test_far(rule);
    rule.kind = ESP_PRUNE_PATTERN;
    rule.keep = 2;
    rule.group = 4;
    test_far(rule);
  }
#endif
}

// k in integers is k in double.
void test_share() {
  Random random(7);
  for (int i = 0; i < 200000; i++) {
    const int64_t n = static_cast<int64_t>(random.bits() >> (11 + random.below(50)));
    const double fraction = i % 3 == 0   ? static_cast<double>(random.below(1001)) / 1000
                            : i % 3 == 1 ? static_cast<double>(random.bits() >> 11) * 0x1p-53
                                         : (static_cast<double>(random.below(2 * n + 1)) / 2) /
                                               static_cast<double>(n > 0 ? n : 1);
    if (!(fraction <= 1)) continue;
    const double product = fraction * static_cast<double>(n), down = std::floor(product),
                 rest = product - down;
    const int64_t whole = static_cast<int64_t>(down);
    const int64_t expected = rest < 0.5 ? whole : rest > 0.5 ? whole + 1 : whole + (whole & 1);
    if (esp::prune_share(esp::prune_amount(fraction), n) != expected) {
      std::printf("  %a of %lld\n", fraction, static_cast<long long>(n));
      CHECK(false);
      return;
    }
  }
  CHECK(esp::prune_share(esp::prune_amount(1e-300), int64_t{1} << 53) == 0);
  CHECK(esp::prune_share(esp::prune_amount(1), int64_t{1} << 53) == int64_t{1} << 53);
}

void test_refusals() {
  esp_cuda_plan plan;
  float x[4] = {};
  esp_prune_tensor tensor = {x, x, nullptr, nullptr, 4, 4, 1, ESP_F32};
  esp_prune_rule rule = rule_of(ESP_PRUNE_AMOUNT, ESP_PRUNE_GLOBAL, 1.5);
  CHECK(esp_cuda_magnitude_prune_plan(&tensor, 1, &rule, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  rule.amount = 0.5;
  CHECK(esp_cuda_magnitude_prune_plan(&tensor, 1, &rule, &plan, nullptr) == ESP_OK);
  esp_prune_result result;
  rule.scope = ESP_PRUNE_TENSOR;  // not what the plan was made for
  CHECK(esp_cuda_magnitude_prune(&plan, x, x, &rule, &result, nullptr, nullptr) == ESP_INVALID_ARGUMENT);
  rule.kind = ESP_PRUNE_PATTERN;
  rule.keep = 1;
  rule.group = 3;
  CHECK(esp_cuda_magnitude_prune_plan(&tensor, 1, &rule, &plan, nullptr) == ESP_INVALID_ARGUMENT);
  // Scratch memory: 1 MiB and 2 % of the weights, which are not looked at.
  tensor.n = 110000000;
  rule = rule_of(ESP_PRUNE_AMOUNT, ESP_PRUNE_GLOBAL, 0.5);
  CHECK(esp_cuda_magnitude_prune_plan(&tensor, 1, &rule, &plan, nullptr) == ESP_OK);
  CHECK(plan.workspace_bytes <= (1 << 20) + tensor.n * 4 / 50);
}

}  // namespace

int main(int argc, char** argv) {
  test_share();
  test_refusals();
  return run_tests(argc, argv, test);
}
