// MOH_TEST_STRIDE=n runs every n-th case of a table: for builds that are slow, like those with sanitizers.
#pragma once

#include <algorithm>
#include <cstdlib>

inline bool skipped_by_stride(unsigned number) {
  static const char* text = std::getenv("MOH_TEST_STRIDE");
  static const unsigned stride = text == nullptr ? 1 : static_cast<unsigned>(std::max(1, std::atoi(text)));
  return number % stride != 0;
}
