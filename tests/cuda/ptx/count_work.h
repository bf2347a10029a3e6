// What gpu_benchmark prints in place of times where it is built to count: how much of the time in which memory moves the bytes of
// a row an H200's multiprocessors are busy, by what keeps them busy. Near 1 and over, memory waits for them.
//
// Of PTX, so a guess: in static counts ptxas makes as many instructions of it, of which a fifth fewer are integer ones.
#pragma once
#include <cstdio>
#include <functional>
#include <string>

#include "espalier/device.h"
#include "ptx.h"

namespace ptx {

// One call.
inline void count_work(const std::function<void()>& work, void* stream) {
  esp_cuda_stream_synchronize(stream);
  counted.clear();
  counts = true;
  work();
  esp_cuda_stream_synchronize(stream);
  counts = false;
}

inline void print_work(const std::string& name, const std::string& size, double bytes) {
  if (bytes == 0 || counted.empty()) return;
  std::printf("%s, %s\n", name.c_str(), size.c_str());
  // Clocks of one of 132 multiprocessors at 1.755 GHz while 4.3 TB/s bring a byte; it begins 4 instructions of a warp in one,
  // 4 of single precision, 2 of integers or doubles, half a conversion, one of memory.
  const double clocks = bytes * 132 * 1.755e9 / 4.3e12;
  for (const auto& [kernel, sum] : counted) {
    const Work& w = sum.work;
    const double issue = (w.single + w.integer + w.convert + w.twice + w.memory + w.other) / 4 / clocks;
    if (issue < 0.005) continue;
    const size_t source = kernel.find("_cu_");
    std::printf("  %-44.44s asks for %.2f of the bytes; issue %.2f, single %.2f, integer %.2f, conversions %.2f, double %.2f, memory %.2f\n",
                kernel.c_str() + (source == std::string::npos ? 0 : source + 14), (sum.read + sum.written) / bytes, issue,
                w.single / 4 / clocks, w.integer / 2 / clocks, w.convert * 2 / clocks, w.twice / 2 / clocks, w.memory / clocks);
  }
}

}  // namespace ptx
