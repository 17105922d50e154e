// Python's random.Random for integer seeds, number by number: few-shot examples are drawn, and standard errors of
// perplexities resampled, as lm-evaluation-harness does it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace moh::eval {

class PythonRandom {
 public:
  explicit PythonRandom(std::uint32_t seed);

  std::uint32_t bits32();  // getrandbits(32)
  double uniform();        // random(): 53 bits, in [0, 1)
  // _randbelow(n), 0 < n < 2^32.
  std::uint32_t below(std::uint32_t n);
  // Which elements random.sample(population, count) takes, in order; count <= population.
  std::vector<std::size_t> sample(std::size_t population, std::size_t count);

 private:
  void refill();

  std::array<std::uint32_t, 624> state_{};
  std::size_t next_ = 0;
};

}  // namespace moh::eval
