// A small generator whose numbers are the same on every machine and library, unlike those of std's distributions: what
// a training example looks like depends on its seed alone. Torch-free.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace moh::data {

class Random {
 public:
  // Streams of different (seed, number) are unrelated.
  explicit Random(std::uint64_t seed, std::uint64_t number = 0) : state_(mix(seed + kStep) ^ mix(number * kStep + 1)) {}

  std::uint64_t bits() { return mix(state_ += kStep); }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }  // [0, 1)
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  // 0 .. count - 1; the bias of the remainder is below 2^-40 for any count in use.
  std::int64_t below(std::int64_t count) {
    return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(count));
  }
  bool chance(double share) { return uniform() < share; }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }
  // Gamma with scale 1 (Marsaglia and Tsang), and Beta from two of them.
  double gamma(double shape) {
    if (shape < 1) return gamma(shape + 1) * std::pow(1 - uniform(), 1 / shape);
    const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
    for (;;) {
      const double x = normal(), v = std::pow(1 + c * x, 3);
      if (v > 0 && std::log(1 - uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
    }
  }
  double beta(double a, double b) {
    const double x = gamma(a), y = gamma(b);
    return x + y > 0 ? x / (x + y) : 0.5;
  }

 private:
  static constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15U;  // SplitMix64
  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  std::uint64_t state_;
};

}  // namespace moh::data
