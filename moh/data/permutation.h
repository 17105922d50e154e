// An order of 0 .. size - 1 without a list of it: place i of it follows from the seed alone, in constant time and
// memory. For data sets whose lists would take gigabytes. A Feistel network over the next power of four, walked until
// it lands inside. Torch-free.
#pragma once

#include <cstdint>

namespace moh::data {

class Permutation {
 public:
  Permutation(std::uint64_t size, std::uint64_t seed, std::uint64_t number) : size_(size) {
    while ((std::uint64_t{1} << (2 * half_)) < size) ++half_;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      keys_[round] = mix(mix(seed + 1) ^ mix((number << 8) + round + 0x51));
    }
  }
  std::uint64_t operator()(std::uint64_t i) const {
    do {
      i = once(i);
    } while (i >= size_);  // fewer than four times on average
    return i;
  }

 private:
  static constexpr std::uint64_t kRounds = 6;
  static std::uint64_t mix(std::uint64_t z) {  // SplitMix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  std::uint64_t once(std::uint64_t i) const {
    const std::uint64_t mask = (std::uint64_t{1} << half_) - 1;
    std::uint64_t left = i >> half_, right = i & mask;
    for (const std::uint64_t key : keys_) {
      const std::uint64_t next = left ^ (mix(right + key) & mask);
      left = right;
      right = next;
    }
    return left << half_ | right;
  }
  std::uint64_t size_;
  unsigned half_ = 1;
  std::uint64_t keys_[kRounds];
};

}  // namespace moh::data
