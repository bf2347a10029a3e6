// Streams, events and graphs: what is queued runs when something waits for it.
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <vector>

#include "emulator.h"
#include "fibers.h"
#include "launches.h"
#include "runtime.h"

namespace emulator {
namespace {

// What is queued: a launch, or all else.
struct Work {
  std::function<void()> run;
  std::shared_ptr<const Launch> launch;
};
struct Graph {
  std::vector<Work> work;
};
struct Stream {
  std::deque<Work> queue;
  int64_t queued = 0, done = 0;
  Graph* capturing = nullptr;
};
struct Event {
  Stream* stream = nullptr;
  int64_t after = 0;
};

std::vector<std::unique_ptr<Stream>> streams;  // never freed: events refer to them
Stream default_stream;
Stream* stream_of(cudaStream_t stream) {
  return stream == nullptr ? &default_stream : reinterpret_cast<Stream*>(stream);
}

int64_t waits = 0;

void advance(Stream* stream, int64_t until) {
  while (!failed && stream->done < until) {
    std::vector<Launch> launches;
    const auto follows = [&] { return stream->queue.front().launch != nullptr && stream->queue.front().launch->shape.follows; };
    Work work;
    do {
      work = std::move(stream->queue.front());
      stream->queue.pop_front();
      stream->done++;
      if (work.launch != nullptr) launches.push_back(*work.launch);
    } while (work.launch != nullptr && stream->done < until && follows());
    launches.empty() ? work.run() : run_launches(launches);
  }
}
cudaError_t wait_for(Stream* stream) {
  waits++;
  if (stream->capturing != nullptr) return note(cudaErrorStreamCaptureUnsupported);
  advance(stream, stream->queued);
  return usable();
}

cudaError_t enqueue(cudaStream_t to, Work work) {
  if (cudaError_t error = usable()) return error;
  Stream* const stream = stream_of(to);
  if (stream->capturing != nullptr) {
    stream->capturing->work.push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
    stream->queued++;
  }
  return cudaSuccess;
}

}  // namespace

bool capturing() {
  for (const auto& stream : streams) {
    if (stream->capturing != nullptr) return true;
  }
  return false;
}
bool capturing(cudaStream_t stream) {
  return stream_of(stream)->capturing != nullptr;
}

void wait_for_all() {
  waits++;
  advance(&default_stream, default_stream.queued);
  for (const auto& stream : streams) advance(stream.get(), stream->queued);
}

cudaError_t enqueue(cudaStream_t to, std::function<void()> run) {
  return enqueue(to, Work{std::move(run), nullptr});
}

cudaError_t queue_launch(const void* function, Call call, void* arguments, void (*destroy)(void*),
                         const Shape& shape, cudaStream_t stream) {
  const Alone alone;
  auto launch = std::make_shared<const Launch>(Launch{call, std::shared_ptr<void>(arguments, destroy), shape, most_shared(function)});
  const Stream* const to = stream_of(stream);
  const Work* const before = to->capturing != nullptr ? (to->capturing->work.empty() ? nullptr : &to->capturing->work.back())
                             : to->queue.empty()      ? nullptr
                                                      : &to->queue.back();
  const char* reason = impossible(function, shape);
  if (reason == nullptr && shape.follows && before != nullptr && before->launch == nullptr)
    reason = "a kernel that follows what is no kernel";
  if (reason != nullptr) {
    std::snprintf(report, sizeof report, "%s", reason);
    return note(cudaErrorInvalidConfiguration);
  }
  return enqueue(stream, Work{nullptr, std::move(launch)});
}

void reset() {
  failed = false;
  report[0] = 0;
  last_error = cudaSuccess;
  forget_allowed();
  default_stream.queue.clear();
  default_stream.done = default_stream.queued;
  for (const auto& stream : streams) {
    stream->queue.clear();
    stream->done = stream->queued;
  }
}

int64_t synchronizations() {
  return waits;
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Alone alone;
  streams.push_back(std::make_unique<Stream>());
  *stream = reinterpret_cast<cudaStream_t>(streams.back().get());
  return usable();
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Alone alone;
  advance(stream_of(stream), stream_of(stream)->queued);
  return usable();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Alone alone;
  return wait_for(stream_of(stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Alone alone;
  const Event recorded = *reinterpret_cast<Event*>(event);
  if (recorded.stream == nullptr) return usable();
  return enqueue(stream, [recorded] { advance(recorded.stream, recorded.after); });
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Alone alone;
  if (stream == nullptr || stream_of(stream)->capturing != nullptr)
    return note(cudaErrorStreamCaptureUnsupported);
  stream_of(stream)->capturing = new Graph;
  return usable();
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Alone alone;
  *status =
      stream_of(stream)->capturing == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return usable();
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Alone alone;
  *graph = reinterpret_cast<cudaGraph_t>(stream_of(stream)->capturing);
  stream_of(stream)->capturing = nullptr;
  return usable();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  const Alone alone;
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return usable();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Alone alone;
  for (const Work& work : reinterpret_cast<Graph*>(executable)->work) {
    if (cudaError_t error = enqueue(stream, work)) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Alone alone;
  delete reinterpret_cast<Graph*>(executable);
  return usable();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Alone alone;
  delete reinterpret_cast<Graph*>(graph);
  return usable();
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  const Alone alone;
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return usable();
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Alone alone;
  delete reinterpret_cast<Event*>(event);
  return usable();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Alone alone;
  Stream* const on = stream_of(stream);
  if (on->capturing != nullptr) return note(cudaErrorStreamCaptureUnsupported);
  *reinterpret_cast<Event*>(event) = {on, on->queued};
  return usable();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Alone alone;
  const Event* const recorded = reinterpret_cast<Event*>(event);
  waits++;
  if (recorded->stream != nullptr) advance(recorded->stream, recorded->after);
  return usable();
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  const Alone alone;
  *milliseconds = 1;  // there is no time here
  return usable();
}
