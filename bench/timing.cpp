#include <algorithm>
#include <chrono>

#include "bench/bench.h"

namespace moh::bench {
namespace {

double milliseconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double quantile(std::vector<double> values, double at) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(at * static_cast<double>(values.size() - 1) + 0.5)];
}

}  // namespace

Timing time_pair(const std::function<void()>& moh, const std::function<void()>& rival, double seconds) {
  constexpr std::size_t kMinPairs = 5;
  for (int i = 0; i < 2; ++i) {
    moh();
    rival();
  }
  std::vector<double> ours, theirs, ratios;
  double spent = 0;
  while (spent < seconds * 1000 || ratios.size() < kMinPairs) {
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

}  // namespace moh::bench
