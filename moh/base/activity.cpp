#include "moh/base/activity.h"

#include <utility>

namespace moh {
namespace {
thread_local const std::atomic<bool>* stop_flag = nullptr;
thread_local PartListener* part_listener = nullptr;
std::atomic<void (*)(const Activity&)> listener_of_reports{nullptr};
}  // namespace

Interruptible::Interruptible(const std::atomic<bool>& stop) : before_(stop_flag) { stop_flag = &stop; }
Interruptible::~Interruptible() { stop_flag = before_; }

void check_interrupt() {
  if (stop_flag != nullptr && stop_flag->load(std::memory_order_relaxed)) throw Interrupted();
}

PartListener::PartListener(std::function<void(double share)> on_part)
    : on_part_(std::move(on_part)), before_(part_listener) {
  part_listener = this;
}
PartListener::~PartListener() { part_listener = before_; }

void part_done(std::int64_t part, std::int64_t parts) {
  if (part_listener != nullptr) part_listener->on_part_(static_cast<double>(part) / static_cast<double>(parts));
  check_interrupt();
}

void set_activity_listener(void (*listener)(const Activity& activity)) { listener_of_reports = listener; }

void report_activity(const Activity& activity) {
  if (auto* const listener = listener_of_reports.load()) listener(activity);
  check_interrupt();
}

}  // namespace moh
