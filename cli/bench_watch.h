// Whether a machine was its benchmark's own: what other programs used meanwhile, and whether its rates held still.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace moh::cli {

class BenchWatch {
 public:
  BenchWatch();
  // Around every case.
  void begin();
  // CPUs' worth of time that others, a virtual machine's host among them, used since begin(); 0 where /proc/stat is not
  // there.
  double end();
  // True if so much beside `threads` of our own leaves too little of the machine.
  bool disturbs(double other_cpus, int threads) const;

  // Measures memory bandwidth and the rate of a matrix product in some milliseconds, to see how far they swing in a
  // run.
  void probe();
  // Fastest over slowest probe.
  double bandwidth_swing() const;
  double product_swing() const;

 private:
  at::Tensor memory_, matrix_;
  std::vector<double> read_ms_, product_ms_;
  double busy_ = 0, own_ = 0, wall_ = 0;
};

constexpr double kSwingLimit = 1.25;

}  // namespace moh::cli
