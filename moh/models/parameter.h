// One tensor that a model consists of, as its name table lists it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moh::models {

struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  bool decays;  // weight decay applies
};

}  // namespace moh::models
