// moh bench serve and moh bench generate: a model that serves many, and one that writes alone.
#pragma once

#include <optional>

#include "cli/command.h"

namespace moh::cli {

// Adds both as subcommands of `bench`. What it returns gives what to run once the command line is read; nothing:
// another subject was asked for.
std::function<std::optional<Run>()> add_serving_subjects(CLI::App& bench, Context& context);

}  // namespace moh::cli
