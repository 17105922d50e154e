#include "cli/usage.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>

#include "moh/base/fields.h"

namespace moh::cli {
namespace {

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string did_you_mean(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = nearest_name(word, known);
  return near.empty() ? "" : fmt::format("; did you mean `{}`?", near);
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands({})) names.push_back(sub->get_name());
  return names;
}

// The commands parsed, outermost first: {moh, tokenizer, encode}.
std::vector<const CLI::App*> parsed_commands(const CLI::App& app) {
  std::vector<const CLI::App*> chain = {&app};
  while (!chain.back()->get_subcommands().empty()) chain.push_back(chain.back()->get_subcommands()[0]);
  return chain;
}

bool is_option(const std::string& argument) {
  return argument.size() > 1 && argument[0] == '-' && std::isdigit(static_cast<unsigned char>(argument[1])) == 0 &&
         argument != "--";
}

// The first word that no command has the name of, where one has to stand; "" if commands are right.
std::string unknown_command(const std::vector<const CLI::App*>& chain, const std::vector<std::string>& arguments) {
  if (chain.back()->get_require_subcommand_min() == 0 || arguments.size() < chain.size()) return "";
  const std::string& word = arguments[chain.size() - 1];
  return is_option(word) ? "" : word;
}

std::string explain_extras(const std::vector<const CLI::App*>& chain, const std::vector<std::string>& arguments,
                           const std::string& otherwise) {
  std::vector<std::string> known;
  for (const CLI::App* command : chain) {
    if (command == chain.front() && chain.size() > 1) continue;  // options stand behind the command
    for (const std::string& name : option_names(*command)) known.push_back(name);
  }
  for (const std::string& argument : arguments) {
    if (argument == "--") break;
    if (!is_option(argument)) continue;
    const std::string name = argument.substr(0, argument.find('='));
    if (name == "-h" || std::find(known.begin(), known.end(), name) != known.end()) continue;
    if (chain.size() == 1) return fmt::format("unknown option `{}`; options stand behind a command", name);
    return fmt::format("unknown option `{}`{}", name, did_you_mean(name, known));
  }
  const std::size_t colon = otherwise.rfind(": ");
  if (colon == std::string::npos) return otherwise;
  std::string takes;
  for (const CLI::Option* option : chain.back()->get_options()) {
    if (!option->get_positional()) continue;
    takes += " " + option->get_name(true);
  }
  std::transform(takes.begin(), takes.end(), takes.begin(), [](unsigned char c) { return std::toupper(c); });
  return fmt::format("`{}` is too much: {} takes {}", otherwise.substr(colon + 2), chain.back()->get_name(),
                     takes.empty() ? "options alone" : takes.substr(1) + " and options");
}

// CLI11 says "--name: word not in {a,b}".
std::string explain_value(const std::string& text) {
  const std::size_t colon = text.find(": "), set = text.rfind(" not in {");
  if (colon == std::string::npos || set == std::string::npos || set < colon || !text.ends_with('}')) return text;
  const std::string name = text.substr(0, colon), word = text.substr(colon + 2, set - colon - 2);
  std::string list = text.substr(set + 9, text.size() - set - 10);
  std::vector<std::string> known;
  for (std::size_t from = 0; from <= list.size();) {
    const std::size_t comma = std::min(list.find(',', from), list.size());
    known.push_back(list.substr(from, comma - from));
    from = comma + 1;
  }
  const std::string near = did_you_mean(word, known);
  return fmt::format("{} cannot be `{}`{}{}", name, word,
                     near.empty() ? "; known: " : near + " Known: ", fmt::join(known, ", "));
}

}  // namespace

std::vector<std::string> without_help_command(std::vector<std::string> arguments) {
  if (arguments.empty() || arguments[0] != "help") return arguments;
  arguments.erase(arguments.begin());
  arguments.emplace_back("--help");
  return arguments;
}

std::string explain(const CLI::App& app, const std::vector<std::string>& arguments, const CLI::ParseError& error) {
  const auto chain = parsed_commands(app);
  std::string path;  // "eval", "tokenizer encode"
  for (std::size_t i = 1; i < chain.size(); ++i) path += chain[i]->get_name() + " ";
  const std::string text = first_line(error.what());
  std::string message;
  if (const std::string word = unknown_command(chain, arguments); !word.empty()) {
    message = fmt::format("unknown command `{}{}`{}", path, word, did_you_mean(word, command_names(*chain.back())));
  } else if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    message = explain_extras(chain, arguments, text);
  } else if (dynamic_cast<const CLI::ValidationError*>(&error) != nullptr) {
    message = explain_value(text);
  } else if (text == "A subcommand is required") {
    message = fmt::format("a command is missing; known: {}", fmt::join(command_names(*chain.back()), ", "));
  } else if (text.ends_with(" is required")) {
    message = text.substr(0, text.size() - 12) + " is missing";
  } else {
    message = text;
  }
  return fmt::format("{} `moh {}--help`", message + (message.ends_with('?') ? " See" : "; see"), path);
}

std::vector<std::string> allowed_values(const CLI::Option& option) {
  const std::string type = option.get_type_name();  // "TEXT:{a,b}"
  const std::size_t open = type.rfind(":{");
  std::vector<std::string> values;
  if (open == std::string::npos || !type.ends_with('}')) return values;
  for (std::size_t from = open + 2; from < type.size();) {
    const std::size_t end = std::min(type.find(',', from), type.size() - 1);
    values.push_back(type.substr(from, end - from));
    from = end + 1;
  }
  return values;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

}  // namespace moh::cli
