// Wrong usage, explained: what was typed, what was meant, where the help is.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace moh::cli {

// `moh help [COMMAND...]` as `moh [COMMAND...] --help`; other arguments as they are.
std::vector<std::string> without_help_command(std::vector<std::string> arguments);

// One line for an error of parsing `arguments` by `app`, which has a subcommand for every command.
std::string explain(const CLI::App& app, const std::vector<std::string>& arguments, const CLI::ParseError& error);

// The values an option is restricted to; empty: any.
std::vector<std::string> allowed_values(const CLI::Option& option);

// "--name" of each long name of the options of `app`, hidden ones too.
std::vector<std::string> option_names(const CLI::App& app);

}  // namespace moh::cli
