// The one exception type of the library and the macro that throws it.
// A message says where, what and, if there is one, the remedy:
//   "[head_attention] query must be [B, T, H, D], got [2, 128, 768]".
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace moh {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}
}  // namespace detail

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  throw Error(detail::concat(args...));
}

}  // namespace moh

#define MOH_CHECK(condition, ...)  \
  do {                             \
    if (!(condition)) [[unlikely]] \
      ::moh::fail(__VA_ARGS__);    \
  } while (false)
