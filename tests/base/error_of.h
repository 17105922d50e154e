// The message of the moh::Error that a call throws; "" when it throws none.
#pragma once

#include <string>

#include "moh/base/error.h"

namespace moh::test {

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace moh::test
