#include "moh/eval/python_random.h"

#include <bit>
#include <cmath>
#include <numeric>
#include <unordered_set>

#include "moh/base/error.h"

namespace moh::eval {
namespace {

// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded by an array of one number as Python does it.
constexpr std::size_t kSize = 624, kShift = 397;

}  // namespace

PythonRandom::PythonRandom(std::uint32_t seed) {
  const auto mixed = [&](std::size_t i) { return state_[i - 1] ^ (state_[i - 1] >> 30); };
  state_[0] = 19650218;
  for (std::size_t i = 1; i < kSize; ++i) state_[i] = 1812433253u * mixed(i) + static_cast<std::uint32_t>(i);
  std::size_t i = 1;
  const auto step = [&] {
    if (++i < kSize) return;
    state_[0] = state_[kSize - 1];
    i = 1;
  };
  for (std::size_t k = 0; k < kSize; ++k, step()) state_[i] = (state_[i] ^ (mixed(i) * 1664525u)) + seed;
  for (std::size_t k = 1; k < kSize; ++k, step()) {
    state_[i] = (state_[i] ^ (mixed(i) * 1566083941u)) - static_cast<std::uint32_t>(i);
  }
  state_[0] = 0x80000000u;
  next_ = kSize;
}

void PythonRandom::refill() {
  for (std::size_t i = 0; i < kSize; ++i) {
    const std::uint32_t joined = (state_[i] & 0x80000000u) | (state_[(i + 1) % kSize] & 0x7fffffffu);
    state_[i] = state_[(i + kShift) % kSize] ^ (joined >> 1) ^ ((joined & 1u) != 0 ? 0x9908b0dfu : 0u);
  }
  next_ = 0;
}

std::uint32_t PythonRandom::bits32() {
  if (next_ == kSize) refill();
  std::uint32_t bits = state_[next_++];
  bits ^= bits >> 11;
  bits ^= (bits << 7) & 0x9d2c5680u;
  bits ^= (bits << 15) & 0xefc60000u;
  return bits ^ (bits >> 18);
}

double PythonRandom::uniform() {
  const std::uint32_t high = bits32() >> 5, low = bits32() >> 6;
  return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0);
}

std::uint32_t PythonRandom::below(std::uint32_t n) {
  MOH_CHECK(n > 0, "[random] no number is below 0");
  const int unused = std::countl_zero(n);
  for (;;) {
    const std::uint32_t drawn = bits32() >> unused;
    if (drawn < n) return drawn;
  }
}

std::vector<std::size_t> PythonRandom::sample(std::size_t population, std::size_t count) {
  MOH_CHECK(count <= population && population < (std::size_t{1} << 32), "[random] cannot draw ", count, " of ",
            population);
  // Python compares the memory of a list with that of a set, and draws in another way where the list is smaller.
  double set_size = 21;
  if (count > 5) set_size += std::pow(4, std::ceil(std::log(static_cast<double>(count) * 3) / std::log(4.0)));
  std::vector<std::size_t> drawn;
  if (static_cast<double>(population) <= set_size) {
    std::vector<std::size_t> pool(population);
    std::iota(pool.begin(), pool.end(), std::size_t{0});
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t at = below(static_cast<std::uint32_t>(population - i));
      drawn.push_back(pool[at]);
      pool[at] = pool[population - i - 1];
    }
    return drawn;
  }
  std::unordered_set<std::size_t> taken;
  while (drawn.size() < count) {
    const std::size_t at = below(static_cast<std::uint32_t>(population));
    if (taken.insert(at).second) drawn.push_back(at);
  }
  return drawn;
}

}  // namespace moh::eval
