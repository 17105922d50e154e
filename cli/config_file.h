// Sections of settings from a TOML file and from `--section.key value` on the command line.
#pragma once

#include <string>
#include <vector>

#include "moh/base/fields.h"

namespace moh::cli {

// {"section": {"key": value}} of a TOML file.
Json read_toml(const std::string& path);

// Any TOML file as JSON.
Json read_any_toml(const std::string& path);

// Takes `--model.key value` and `--moh.key value` (or `=value`) out of the arguments. Values are read as TOML values
// (numbers, true, lists); what is none is a string. Other sections are ordinary flags of their command.
Json take_section_arguments(std::vector<std::string>& arguments);

}  // namespace moh::cli
