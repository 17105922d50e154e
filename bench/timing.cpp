#include "bench/timing.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "moh/base/activity.h"

namespace moh::bench {
namespace {

double quantile(std::vector<double> values, double at) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(at * static_cast<double>(values.size() - 1) + 0.5)];
}

}  // namespace

std::function<void()> until_done(std::function<void()> work, at::Device device) {
  if (device.is_cpu()) return work;
  return [work = std::move(work), device] {
    work();
    const c10::impl::VirtualGuardImpl guard(device.type());
    guard.synchronizeDevice(device.has_index() ? device.index() : guard.getDevice().index());
  };
}

double milliseconds(const std::function<void()>& work) {
  check_interrupt();
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

Timing time_pair(const std::function<void()>& moh, const std::function<void()>& rival, double seconds,
                 std::int64_t min_pairs) {
  // Long runs are warm after one.
  constexpr double kLongMs = 500;
  if (milliseconds(moh) + milliseconds(rival) < kLongMs) {
    moh();
    rival();
  }
  std::vector<double> ours, theirs, ratios;
  double spent = 0;
  while (spent < seconds * 1000 || static_cast<std::int64_t>(ratios.size()) < std::max<std::int64_t>(min_pairs, 1)) {
    const bool moh_first = ratios.size() % 2 == 0;
    const double first = milliseconds(moh_first ? moh : rival), second = milliseconds(moh_first ? rival : moh);
    ours.push_back(moh_first ? first : second);
    theirs.push_back(moh_first ? second : first);
    ratios.push_back(ours.back() / theirs.back());
    spent += first + second;
  }
  return {quantile(ours, 0.5),    quantile(theirs, 0.5),  quantile(ratios, 0.5),
          quantile(ratios, 0.25), quantile(ratios, 0.75), static_cast<std::int64_t>(ratios.size())};
}

double best_ms(const std::function<void()>& work, double seconds) {
  double best = std::numeric_limits<double>::infinity(), spent = 0;
  for (int run = 0; run < 3 || spent < seconds * 1000; ++run) {
    const double ms = milliseconds(work);
    best = std::min(best, ms);
    spent += ms;
  }
  return best;
}

const Form& fastest(const std::vector<Form>& forms) {
  std::size_t best = 0;
  if (forms.size() == 1) return forms[best];
  constexpr int kRounds = 4;  // the first warms up
  constexpr double kEnoughMs = 500;
  double spent = 0;
  std::vector<double> least(forms.size(), std::numeric_limits<double>::infinity());
  for (int round = 0; round < 2 || (round < kRounds && spent < kEnoughMs); ++round) {
    for (std::size_t i = 0; i < forms.size(); ++i) {
      const double ms = milliseconds(forms[i].run);
      spent += ms;
      if (round > 0) least[i] = std::min(least[i], ms);
    }
  }
  for (std::size_t i = 1; i < forms.size(); ++i) {
    if (least[i] < least[best]) best = i;
  }
  return forms[best];
}

}  // namespace moh::bench
