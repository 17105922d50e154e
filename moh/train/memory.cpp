#include "moh/train/memory.h"

#include <algorithm>

#include "moh/train/sharded_adamw.h"

namespace moh::train {

std::vector<std::pair<std::string, std::int64_t>> training_memory(std::int64_t parameters, std::int64_t largest,
                                                                  int processes) {
  const std::int64_t weights = 4 * parameters;
  if (processes == 1) return {{"weights", weights}, {"gradients", weights}, {"moments", 2 * weights}};
  // A bucket on its way is there twice: what is sent and what is received.
  const std::int64_t bucket = 4 * std::max(kBucketNumbers, largest);
  return {{"weights", weights},
          {"gradients", weights},
          {"moments", 2 * weights / processes},
          {"summed gradients", weights / processes},
          {"buckets", 2 * bucket * static_cast<std::int64_t>(kBucketsOnTheWay)}};
}

}  // namespace moh::train
