// What a long computation tells whoever waits for it, and where it can be stopped: nothing in the library knows of
// terminals or signals, a program lends it both.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>

namespace moh {

// Thrown out of a computation that was asked to stop. Not a moh::Error: nothing went wrong.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

// While one of these lives, this thread's computations end with Interrupted soon after `stop` becomes true. Whoever
// holds state that must be saved whole (training steps, files half written under their own names) does without.
class Interruptible {
 public:
  explicit Interruptible(const std::atomic<bool>& stop);
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

 private:
  const std::atomic<bool>* before_;
};

void check_interrupt();
// Called between parts of a computation that take up to a second, layers of a model: tells PartListener, checks for an
// interrupt.
void part_done(std::int64_t part, std::int64_t parts);

// While one of these lives, it hears this thread's part_done as a share, 0 to 1.
class PartListener {
 public:
  explicit PartListener(std::function<void(double share)> on_part);
  ~PartListener();
  PartListener(const PartListener&) = delete;
  PartListener& operator=(const PartListener&) = delete;

 private:
  std::function<void(double share)> on_part_;
  PartListener* before_;
  friend void part_done(std::int64_t part, std::int64_t parts);
};

// `done` of `total` items are done. Phases follow one another; one ends with done == total.
struct Activity {
  const char* what;  // "writing"
  double done = 0, total = 0;
  const char* unit = "";  // "bytes", "tokens", "windows"
};
// Hears every report; nullptr: nobody.
void set_activity_listener(void (*listener)(const Activity& activity));
// Tells the listener, then checks for an interrupt.
void report_activity(const Activity& activity);

// For loops over many small parts: reports once in a while. A loop that ends before the first report is never heard of.
class ActivityCount {
 public:
  ActivityCount(const char* what, double total, const char* unit, double every)
      : activity_{what, 0, total, unit}, every_(every), due_(every) {}
  void add(double count) {
    done_ += count;
    if (done_ < due_) return;
    due_ = done_ + every_;
    activity_.done = std::min(done_, activity_.total);
    report_activity(activity_);
  }
  void end() {
    if (activity_.done == 0) return;
    activity_.done = activity_.total;
    report_activity(activity_);
  }

 private:
  Activity activity_;
  double every_, due_, done_ = 0;
};

}  // namespace moh
