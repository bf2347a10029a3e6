// One pool a process. A job is a number of tickets; whoever takes a ticket runs that piece.
//
// The ticket word holds the job's number (high half) and the tickets left (low half), so that a worker that comes late
// can never take a ticket of a later job with the task of an earlier one: it reads task and argument only while it holds
// a ticket, and the job cannot end before that ticket is done.
//
// Workers spin for about 100 us after a job and then sleep on a futex: back-to-back kernels start in well under a
// microsecond, and an idle process burns nothing.
#include "thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "status.h"

namespace {

constexpr int32_t max_threads = 256;
constexpr int64_t spin_nanoseconds = 100'000;

struct Pool {
  alignas(64) std::atomic<bool> busy{false};
  alignas(64) std::atomic<uint32_t> job{0};  // the futex word
  std::atomic<int32_t> sleeping{0};
  alignas(64) std::atomic<uint64_t> tickets{0};
  alignas(64) std::atomic<uint32_t> done{0};
  alignas(64) esp_task task = nullptr;  // this and the next three: written by the owner of `busy`, read under a ticket
  void* argument = nullptr;
  int64_t base = 0;
  uint32_t count = 0;
  int32_t started = 0;              // under `busy`
  std::atomic<int32_t> threads{0};  // 0: not yet asked for
  std::atomic<esp_executor> executor{nullptr};
  std::atomic<void*> executor_context{nullptr};
};
Pool pool;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * int64_t{1'000'000'000} + t.tv_nsec;
}

void futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
  static_assert(sizeof *word == 4, "a futex word is 32 bits");
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, nullptr, nullptr, 0);
}

// Takes tickets of job `job` until none is left.
void work(uint32_t job) {
  uint64_t word = pool.tickets.load(std::memory_order_acquire);
  for (;;) {
    const uint32_t left = static_cast<uint32_t>(word);
    if (static_cast<uint32_t>(word >> 32) != job || left == 0) return;
    if (!pool.tickets.compare_exchange_weak(word, word - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      continue;
    }
    pool.task(pool.argument, pool.base + (pool.count - left));
    pool.done.fetch_add(1, std::memory_order_release);
    word = pool.tickets.load(std::memory_order_acquire);
  }
}

void* worker(void* number) {
  const int32_t index = static_cast<int32_t>(reinterpret_cast<intptr_t>(number));
  uint32_t seen = 0;
  for (;;) {
    const int64_t start = now();
    uint32_t job;
    for (int spins = 1; (job = pool.job.load(std::memory_order_acquire)) == seen; spins++) {
      pause();
      if (spins % 64 != 0) continue;
      sched_yield();  // with more callers than processors, somebody has real work
      if (now() - start > spin_nanoseconds) {
        pool.sleeping.fetch_add(1, std::memory_order_seq_cst);
        while (pool.job.load(std::memory_order_seq_cst) == seen) futex(&pool.job, FUTEX_WAIT_PRIVATE, seen);
        pool.sleeping.fetch_sub(1, std::memory_order_seq_cst);
      }
    }
    seen = job;
    // A worker above the current limit stays out; a job waits only for tickets that were taken.
    if (index < pool.threads.load(std::memory_order_relaxed)) work(job);
  }
  return nullptr;
}

// Workers 1 .. threads-1 exist from the first call that wants them; they take no signals (the host's threads do).
void start_workers(int32_t threads) {
  if (pool.started >= threads - 1) return;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool.started < threads - 1) {
    pthread_t thread;
    void* number = reinterpret_cast<void*>(static_cast<intptr_t>(pool.started + 1));
    if (pthread_create(&thread, nullptr, worker, number) != 0) break;  // fewer workers: slower, not wrong
    pthread_setname_np(thread, "espalier-worker");
    pthread_detach(thread);
    pool.started++;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// The quota of the cgroup in whole processors, or 0 where there is none.
int32_t cgroup_limit() {
  double quota = -1, period = 0;
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = -1;  // "max" is no number
    std::fclose(file);
  } else if (FILE* v1 = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
    if (std::fscanf(v1, "%lf", &quota) != 1) quota = -1;
    std::fclose(v1);
    if (FILE* p = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
      if (std::fscanf(p, "%lf", &period) != 1) period = 0;
      std::fclose(p);
    }
  }
  if (quota <= 0 || period <= 0) return 0;
  const double processors = quota / period;
  return processors < 1 ? 1 : static_cast<int32_t>(processors < max_threads ? processors : max_threads);
}

int32_t usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int32_t n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                          : static_cast<int32_t>(sysconf(_SC_NPROCESSORS_ONLN));
  const int32_t limit = cgroup_limit();
  if (limit > 0 && limit < n) n = limit;
  return n < 1 ? 1 : n > max_threads ? max_threads : n;
}

void run_job(uint32_t count, int64_t base, esp_task task, void* argument) {
  pool.task = task;
  pool.argument = argument;
  pool.base = base;
  pool.count = count;
  pool.done.store(0, std::memory_order_relaxed);
  const uint32_t job = pool.job.load(std::memory_order_relaxed) + 1;
  pool.tickets.store(uint64_t{job} << 32 | count, std::memory_order_release);
  pool.job.store(job, std::memory_order_seq_cst);
  if (pool.sleeping.load(std::memory_order_seq_cst) > 0) futex(&pool.job, FUTEX_WAKE_PRIVATE, count - 1);
  work(job);
  for (int spins = 0; pool.done.load(std::memory_order_acquire) != count; spins++) {
    pause();
    if (spins > 200) sched_yield();  // a helper lost its processor: let it have ours
  }
}

}  // namespace

namespace esp {

int32_t thread_limit() {
  int32_t threads = 1;  // what a wrong setting leaves: operations refuse it before they come here
  esp_threads_current(&threads);
  return threads;
}

void run_parallel(int64_t count, esp_task task, void* argument) {
  if (count <= 0) return;
  if (const esp_executor executor = pool.executor.load(std::memory_order_acquire)) {
    executor(pool.executor_context.load(std::memory_order_relaxed), task, argument, count);
    return;
  }
  const int32_t threads = thread_limit();
  if (count == 1 || threads == 1 || pool.busy.exchange(true, std::memory_order_acquire)) {
    for (int64_t i = 0; i < count; i++) task(argument, i);
    return;
  }
  start_workers(threads);
  for (int64_t base = 0; base < count; base += INT32_MAX) {
    const int64_t left = count - base;
    run_job(static_cast<uint32_t>(left < INT32_MAX ? left : INT32_MAX), base, task, argument);
  }
  pool.busy.store(false, std::memory_order_release);
}

}  // namespace esp

esp_status esp_threads_current(int32_t* threads) {
  const int32_t set = pool.threads.load(std::memory_order_relaxed);
  if (set != 0) {
    *threads = set;
    return ESP_OK;
  }
  const char* wanted = std::getenv("ESPALIER_THREADS");
  if (wanted == nullptr || *wanted == 0) return esp_threads_set(*threads = usable_processors());
  char* end;
  errno = 0;
  const long n = std::strtol(wanted, &end, 10);
  if (*end != 0 || errno != 0 || n < 1 || n > max_threads) {
    return esp::fail(ESP_UNSUPPORTED, "ESPALIER_THREADS is \"%.32s\"; it takes a number from 1 to %d", wanted, max_threads);
  }
  return esp_threads_set(*threads = static_cast<int32_t>(n));
}

esp_status esp_threads_set(int32_t threads) {
  if (threads < 1 || threads > max_threads) {
    return esp::fail(ESP_INVALID_ARGUMENT, "%d threads asked for; 1 to %d are possible", threads, max_threads);
  }
  pool.threads.store(threads, std::memory_order_relaxed);
  return ESP_OK;
}

void esp_executor_set(esp_executor executor, void* context) {
  pool.executor_context.store(context, std::memory_order_relaxed);
  pool.executor.store(executor, std::memory_order_release);
}
