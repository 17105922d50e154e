#include "cli/bench_watch.h"

#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <functional>

#include "moh/base/cores.h"

namespace moh::cli {
namespace {

constexpr std::int64_t kElements = std::int64_t{1} << 24, kRows = 768;
constexpr int kTries = 3;

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double own_seconds() {
  struct timespec time {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Time that all CPUs together were not idle.
double busy_seconds() {
  std::ifstream file("/proc/stat");
  std::string name;
  double user = 0, nice = 0, system = 0, idle = 0, waiting = 0, interrupts = 0, soft = 0, steal = 0;
  file >> name >> user >> nice >> system >> idle >> waiting >> interrupts >> soft >> steal;
  return (user + nice + system + interrupts + soft + steal) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double best_of(const std::function<void()>& work) {
  double best = 1e30;
  for (int i = 0; i < kTries; ++i) {
    const double start = wall_seconds();
    work();
    best = std::min(best, 1e3 * (wall_seconds() - start));
  }
  return best;
}

double swing(const std::vector<double>& times) {
  if (times.empty()) return 1;
  const auto [least, most] = std::minmax_element(times.begin(), times.end());
  return *most / *least;
}

}  // namespace

BenchWatch::BenchWatch()
    : memory_(at::ones({kElements}, at::TensorOptions(at::kFloat))),
      matrix_(at::ones({kRows, kRows}, at::TensorOptions(at::kFloat))) {}

void BenchWatch::begin() {
  busy_ = busy_seconds();
  own_ = own_seconds();
  wall_ = wall_seconds();
}

double BenchWatch::end() {
  const double wall = wall_seconds() - wall_;
  const double others = busy_seconds() - busy_ - (own_seconds() - own_);
  return wall > 0 ? std::max(0.0, others / wall) : 0;
}

bool BenchWatch::disturbs(double other_cpus, int threads) const {
  constexpr double kNoise = 0.25, kMargin = 0.75;
  return other_cpus > kNoise && other_cpus + threads > available_cores() - kMargin;
}

void BenchWatch::probe() {
  read_ms_.push_back(best_of([&] { memory_.sum(); }));
  product_ms_.push_back(best_of([&] { at::matmul(matrix_, matrix_); }));
}

double BenchWatch::bandwidth_swing() const { return swing(read_ms_); }
double BenchWatch::product_swing() const { return swing(product_ms_); }

}  // namespace moh::cli
