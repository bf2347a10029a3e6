// The pool through the C ABI: every piece runs once, for many short jobs in a row, with many callers, after sleeping,
// and when the number of threads changes in between. Under TSAN this is also the test of its ordering.
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "espalier/bandwidth.h"
#include "espalier/gradient_norm.h"

namespace {

constexpr int64_t n = 3 * 32768 + 17;  // four blocks, over the parallel threshold

double norm_of(const std::vector<float>& g) {
  const esp_gradient gradient = {g.data(), nullptr, nullptr, static_cast<int64_t>(g.size()), ESP_F32};
  esp_gradient_norm_result result;
  return esp_gradient_norm(&gradient, 1, &result) == ESP_OK ? result.norm : NAN;
}

struct Executor {
  int calls = 0;
  int64_t pieces = 0;
};

}  // namespace

int main() {
  std::vector<float> g(n, 0.5f);
  const double expected = std::sqrt(0.25 * n);
  for (int threads : {1, 2, 4, 3, 1, 2}) {
    CHECK(esp_threads_set(threads) == ESP_OK);
    for (int i = 0; i < 500; i++) CHECK(norm_of(g) == expected);
  }
  CHECK(esp_threads_set(0) == ESP_INVALID_ARGUMENT);
  CHECK(std::strstr(esp_last_error(), "1 to 256") != nullptr);

  CHECK(esp_threads_set(4) == ESP_OK);
  for (int i = 0; i < 20; i++) {
    usleep(2000);  // workers are asleep now
    CHECK(norm_of(g) == expected);
  }

  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 8; c++) {
    callers.emplace_back([&, c] {
      std::vector<float> own(n, static_cast<float>(c + 1));
      for (int i = 0; i < 200; i++) {
        if (norm_of(own) != std::sqrt(static_cast<double>(c + 1) * (c + 1) * n)) wrong++;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);

  Executor executor;
  esp_executor_set(
      [](void* context, esp_task task, void* argument, int64_t count) {
        Executor* e = static_cast<Executor*>(context);
        e->calls++;
        e->pieces += count;
        for (int64_t i = count - 1; i >= 0; i--) task(argument, i);
      },
      &executor);
  CHECK(norm_of(g) == expected);
  CHECK(executor.calls == 1 && executor.pieces == 13);
  esp_executor_set(nullptr, nullptr);
  CHECK(norm_of(g) == expected);
  CHECK(executor.calls == 1);
  return finish();
}
