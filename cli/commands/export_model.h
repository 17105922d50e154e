// `moh convert --export hf`.
#pragma once

#include <string>

#include "cli/command.h"

namespace moh::cli {

int export_model(const Context& context, const std::string& in, const std::string& out);

}  // namespace moh::cli
