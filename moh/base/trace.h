// Where the time goes, as a trace that Chrome (chrome://tracing) and Perfetto show: spans with a name in a lane. Costs
// one comparison a span while nobody traces. Torch-free.
#pragma once

#include <chrono>
#include <string>

namespace moh::trace {

using Clock = std::chrono::steady_clock;
enum class Lane { kWork = 0, kNetwork = 1 };

void start();
bool is_on();
void add(const char* name, Lane lane, Clock::time_point begin, Clock::time_point end);
// Ends the trace: all spans since start() as JSON, those of `process`.
std::string finish(int process);

// From here to the end of the scope.
class Span {
 public:
  explicit Span(const char* name, Lane lane = Lane::kWork) : name_(name), lane_(lane) {
    if (is_on()) begin_ = Clock::now();
  }
  ~Span() {
    if (is_on() && begin_ != Clock::time_point()) add(name_, lane_, begin_, Clock::now());
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  const char* name_;
  Lane lane_;
  Clock::time_point begin_;
};

}  // namespace moh::trace
