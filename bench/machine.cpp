#include "bench/machine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "bench/fma_peak.h"
#include "bench/timing.h"
#include "moh/ops/autocast.h"
#include "moh/ops/parallel.h"

namespace moh::bench {
namespace {

using at::Tensor;

double gemm_gflops(at::ScalarType dtype, double seconds, at::Device device) {
  double best = 0;
  // Types without fast arithmetic take long; sizes grow until one product takes a good part of the time allowed.
  for (const std::int64_t size : {256, 512, 1024, 1536, 2048, 4096, 8192}) {
    if (device.is_cpu() && size > 2048) break;
    const Tensor a = at::randn({size, size}, at::TensorOptions(at::kFloat).device(device)).to(dtype);
    const Tensor b = at::randn({size, size}, at::TensorOptions(at::kFloat).device(device)).to(dtype);
    Tensor c = at::empty({size, size}, a.options());
    const double flops = 2.0 * static_cast<double>(size * size * size);
    double slowest = 0;
    for (const Tensor& right : {b, b.t()}) {
      const double ms = best_ms(until_done([&] { at::mm_out(c, a, right); }, device), seconds / 10);
      best = std::max(best, flops / (ms * 1e6));
      slowest = std::max(slowest, ms);
    }
    if (slowest * 8 > seconds * 200) break;
  }
  return best;
}

std::size_t last_cache_bytes() {
  long bytes = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
  bytes = std::max(sysconf(_SC_LEVEL3_CACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE));
#endif
  constexpr std::size_t kTypical = std::size_t{32} << 20;
  return bytes > 0 ? static_cast<std::size_t>(bytes) : kTypical;
}

// Splits [0, count) evenly over LibTorch's threads.
template <class F>
void over_threads(std::size_t count, const F& part) {
  const kernels::Parallel parallel = ops::torch_parallel();
  const auto workers = static_cast<std::size_t>(parallel.num_threads);
  parallel(parallel.num_threads, [&](int worker) {
    const auto index = static_cast<std::size_t>(worker);
    part(count * index / workers, count * (index + 1) / workers, index);
  });
}

void measure_bandwidth(Limits& limits, double seconds) {
  constexpr std::size_t kMost = std::size_t{512} << 20;
  const std::size_t words = std::min(kMost, 4 * last_cache_bytes()) / sizeof(std::uint64_t);
  std::unique_ptr<std::uint64_t[]> from(new std::uint64_t[words]), to(new std::uint64_t[words]);
  over_threads(words, [&](std::size_t begin, std::size_t end, std::size_t) {
    std::fill(from.get() + begin, from.get() + end, 1);
    std::fill(to.get() + begin, to.get() + end, 0);
  });
  const double bytes = static_cast<double>(words * sizeof(std::uint64_t));
  std::vector<std::uint64_t> sums(1024);
  const auto read = [&] {
    over_threads(words, [&](std::size_t begin, std::size_t end, std::size_t worker) {
      std::uint64_t part[16] = {};  // independent, so that the compiler adds vectors
      std::size_t i = begin;
      for (; i + 16 <= end; i += 16) {
        for (int j = 0; j < 16; ++j) part[j] += from[i + static_cast<std::size_t>(j)];
      }
      for (; i < end; ++i) part[0] += from[i];
      std::uint64_t sum = 0;
      for (const std::uint64_t value : part) sum += value;
      sums[worker % sums.size()] = sum;
    });
  };
  limits.read_gbs = bytes / (best_ms(read, seconds / 4) * 1e6);
  const auto copy = [&] {
    over_threads(words, [&](std::size_t begin, std::size_t end, std::size_t) {
      std::memcpy(to.get() + begin, from.get() + begin, (end - begin) * sizeof(std::uint64_t));
    });
  };
  limits.copy_gbs = 2 * bytes / (best_ms(copy, seconds / 4) * 1e6);
}

// The same by LibTorch's operations, which on a GPU are the best that are at hand.
void measure_device_bandwidth(Limits& limits, double seconds, at::Device device) {
  const Tensor from = at::ones({std::int64_t{1} << 28}, at::TensorOptions(at::kFloat).device(device));
  Tensor to = at::empty_like(from);
  const auto bytes = static_cast<double>(from.nbytes());
  limits.read_gbs = bytes / (best_ms(until_done([&] { from.sum(); }, device), seconds / 4) * 1e6);
  limits.copy_gbs = 2 * bytes / (best_ms(until_done([&] { to.copy_(from); }, device), seconds / 4) * 1e6);
}

double fma_gflops(double seconds) {
  constexpr std::int64_t kRounds = 1 << 20;
  const bool wide = at::get_cpu_capability() == "AVX512";
  const auto threads = static_cast<std::size_t>(at::get_num_threads());
  std::vector<double> flops(threads);
  const auto run = [&] {
    over_threads(threads, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) flops[i] = fma_rounds(kRounds, wide);
    });
  };
  const double ms = best_ms(run, seconds / 4);
  double sum = 0;
  for (const double each : flops) sum += each;
  return sum / (ms * 1e6);
}

std::string field_of(const char* file, const std::string& name) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(name)) continue;
    const auto value = line.find_first_not_of(": \t", name.size());
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

}  // namespace

const Limits& machine_limits(const std::string& dtype, double seconds, at::Device device) {
  constexpr double kEnough = 1.0;
  static std::map<std::tuple<std::string, int, std::string>, Limits> measured;
  const auto [place, is_new] = measured.try_emplace({dtype, at::get_num_threads(), device.str()});
  Limits& limits = place->second;
  if (is_new) {
    const double budget = std::min(seconds, kEnough);
    limits.gemm_gflops = gemm_gflops(ops::autocast_type(dtype).value_or(at::kFloat), budget, device);
    if (device.is_cpu()) {
      measure_bandwidth(limits, budget);
      limits.fma_gflops = fma_gflops(budget);
    } else {
      measure_device_bandwidth(limits, budget, device);
    }
  }
  return limits;
}

Row machine_description() {
  Row machine;
  const std::string cpu = field_of("/proc/cpuinfo", "model name");
  machine["cpu"] = cpu.empty() ? "unknown CPU" : cpu;
  machine["cpu_family"] = field_of("/proc/cpuinfo", "cpu family");
  machine["cpu_model"] = field_of("/proc/cpuinfo", "model\t");
  machine["cores"] = std::thread::hardware_concurrency();
  machine["memory_gib"] = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE)) /
                          static_cast<double>(1 << 30);
  machine["last_cache_mib"] = static_cast<double>(last_cache_bytes()) / static_cast<double>(1 << 20);
  machine["torch"] = TORCH_VERSION;
  machine["torch_cpu_capability"] = at::get_cpu_capability();
  machine["compiler"] = "g++ " __VERSION__;
  return machine;
}

}  // namespace moh::bench
