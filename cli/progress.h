// A progress bar with rate and time left on a terminal, a plain line now and then elsewhere. Always on stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "moh/base/activity.h"

namespace moh::cli {

// "1,234,567"
std::string with_commas(std::int64_t value);
// "1.23 billion", "12.3 million", "1,234": for FLOPs.
std::string with_unit(double value);
// "1,234 tokens/s", "12.3 images/s"; bytes as "1.2 GB/s".
std::string format_rate(double rate, const std::string& unit);

// Characters of a line of standard output where that is a terminal; nothing elsewhere: lines of files are as long as
// they are.
std::optional<int> output_width();

class Progress {
 public:
  // With a `unit` the rate of `total` of them is shown. A phase shorter than `delay` seconds shows nothing.
  explicit Progress(std::string label, std::string unit = "", double total = 0, double delay = 0);
  ~Progress();
  // done in [0, 1]; `detail` is shown behind, e.g. "loss 1.234". Time left: from the time so far, unless it is given.
  void update(double done, const std::string& detail = "", std::optional<double> seconds_left = std::nullopt);
  // Ends the bar; its line is wiped from a terminal.
  void finish();
  // A plain line that does not disturb the bar.
  void note(const std::string& text);

  const std::string& label() const { return label_; }
  double seconds() const;  // since the beginning

 private:
  using Clock = std::chrono::steady_clock;
  void draw(double done, const std::string& rate, const std::string& left, const std::string& detail);

  std::string label_, unit_;
  double total_, delay_;
  bool terminal_, finished_ = false, ended_ = false;
  Clock::time_point start_, last_;
  double last_done_ = -1;
};

// Takes the bar that stands on the terminal away, whichever it is: before anything else is written there.
void clear_progress();

// Draws what the library reports (moh/base/activity.h), phase after phase. Call once, at the beginning; while `quiet`,
// which must live on, nothing is drawn.
void show_activities(const bool& quiet);

// The line of a bar, at most `width` characters (code points) long: first the bar gives way, then the detail.
std::string progress_line(const std::string& label, double done, const std::string& left, const std::string& rate,
                          const std::string& detail, int width);

}  // namespace moh::cli
