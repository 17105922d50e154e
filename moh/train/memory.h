// What training takes of each process's memory, by formula. Activations are not in it: they depend on the batch.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace moh::train {

// Bytes by name in the order of their use, for so many fp32 parameters, the largest of which has `largest` numbers.
std::vector<std::pair<std::string, std::int64_t>> training_memory(std::int64_t parameters, std::int64_t largest,
                                                                  int processes);

}  // namespace moh::train
