#include "moh/data/epoch_order.h"

#include "moh/base/error.h"

namespace moh::data {

EpochOrder::EpochOrder(std::int64_t size, std::uint64_t seed) : size_(size), seed_(seed) {
  MOH_CHECK(size > 0, "[data] there are no examples");
}

std::int64_t EpochOrder::operator()(std::int64_t position) {
  if (position / size_ != epoch_) {
    epoch_ = position / size_;
    std::mt19937_64 random = epoch_generator(seed_, epoch_);
    order_ = shuffled<std::int64_t>(size_, random);
  }
  return order_[position % size_];
}

std::uint64_t example_seed(std::uint64_t seed, std::uint64_t position) {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15 * (position + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace moh::data
