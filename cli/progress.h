// A progress bar with rate and time left on a terminal, a plain line now and then elsewhere. Always on stderr.
#pragma once

#include <chrono>
#include <string>

namespace moh::cli {

class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress();
  // done in [0, 1]; `detail` is shown behind, e.g. "loss 1.234, 5,000 tokens/s".
  void update(double done, const std::string& detail = "");
  // Ends the bar; its line is wiped from a terminal.
  void finish();
  // A plain line that does not disturb the bar.
  void note(const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool terminal_, finished_ = false;
  Clock::time_point start_, last_;
  double last_done_ = -1;
};

}  // namespace moh::cli
