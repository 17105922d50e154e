// What a training says while it runs: lines of log.jsonl, the same numbers for TensorBoard, and a listener (the
// console) that hears every line and every step.
#pragma once

#include <chrono>
#include <cstdint>
#include <fstream>
#include <functional>
#include <optional>
#include <string>

#include "moh/base/fields.h"
#include "moh/io/event_writer.h"

namespace moh::train {

// How training goes on. Rates are of training steps alone; what is left counts the validations to come too.
struct Pace {
  std::int64_t step = 0, steps = 0;
  double items_per_second = 0, seconds_left = 0;
};

// on_log hears every line of log.jsonl, on_step every step.
struct Listener {
  std::function<void(const Json& line)> on_log = {};
  std::function<void(const Pace& pace)> on_step = {};
};

class TrainLog {
 public:
  // `speaks`: of several processes one does, for the others there is nothing to do here.
  TrainLog(const std::string& folder, Listener listener, bool speaks);
  // Opens log.jsonl: anew at step 0; else lines of later steps are dropped, since the resumed run writes them again.
  void open(std::int64_t step);
  // `line` has a number "step".
  void write(const Json& line);
  void stepped(const Pace& pace) const;

 private:
  std::string path_;
  Listener listener_;
  std::optional<io::EventWriter> events_;  // nullopt: does not speak
  std::ofstream file_;
};

// Tokens or images a second since the last reset, which follows everything that is not training.
class Rate {
 public:
  void reset() { *this = Rate(); }
  double add(std::int64_t items);

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point since_ = Clock::now();
  std::int64_t items_ = 0;
};

}  // namespace moh::train
