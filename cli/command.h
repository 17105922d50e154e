// The frame that every subcommand fills: a name, a line of help, and a function that adds options and returns what to
// run.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moh/base/fields.h"

namespace moh::cli {

// Options that every command has, and how commands speak: one JSON object a line on stdout with --json, people's text
// on stdout otherwise (on stderr with --json).
struct Context {
  bool json = false;
  bool quiet = false;  // another process speaks for this one
  std::string device = "cpu", dtype = "auto", backend, config_file, read_as = "auto";
  int threads = 0;
  std::uint64_t seed = 0;
  std::string command;                   // as typed, quoted for a shell
  std::vector<std::string> arguments;    // as typed, the command's name first
  Json sections = Json::object();        // from --config and --section.key
  Json given_sections = Json::object();  // from --section.key alone

  void emit(const Json& line) const;
  void say(const std::string& text) const;
  // Threads, backend and device as asked for. Errors: an unknown backend, a device that is not there.
  void apply() const;
  at::Device torch_device() const;
  // What --dtype asks weights to be converted to: nothing for `auto`. Error: an unknown name.
  std::optional<at::ScalarType> weights_type() const;
  // What --dtype asks matrix products to be computed in, weights staying as they are: nothing for `auto` and fp32.
  std::optional<at::ScalarType> autocast_type() const;
};

using Run = std::function<int()>;

struct Command {
  const char* name;
  const char* summary;
  std::function<Run(CLI::App& app, Context& context)> setup;
  std::vector<std::string> sections = {};  // of --config and --SECTION.KEY, those that it reads
};
// The group in --help of the options that every command has.
inline constexpr const char* kCommonGroup = "common";

// Commands register themselves: `const Registered registered{{"name", "summary", setup}};` at the end of their file.
std::vector<Command>& commands();
struct Registered {
  explicit Registered(Command command) { commands().push_back(std::move(command)); }
};

// True once Ctrl-C was pressed; a command that saves its state watches it.
extern std::atomic<bool> interrupted;
// For a command that has nothing to save and long steps: Ctrl-C ends it then and there.
void end_at_once_when_interrupted();
constexpr int kUsageStatus = 2, kInterruptedStatus = 130;

// One flag --field-name (also --section.field_name) for each field of Config; values given are collected in `given`.
// They are a group of --help, called as the section is unless `group` says otherwise.
template <class Config>
void add_fields(CLI::App& app, const std::string& section, Json& given, const std::vector<std::string>& leave_out = {},
                const std::string& group = "") {
  Config defaults;
  auto visit = [&](const char* name, const auto& value, const char* help) {
    using T = std::decay_t<decltype(value)>;
    std::string flag = name;
    if (std::find(leave_out.begin(), leave_out.end(), flag) != leave_out.end()) return;
    std::replace(flag.begin(), flag.end(), '_', '-');
    auto* option = app.add_option_function<T>(
        "--" + flag + ",--" + section + "." + name, [&given, name](const T& parsed) { given[name] = parsed; }, help);
    option->default_str(Json(value).is_string() ? Json(value).get<std::string>() : Json(value).dump())
        ->group(group.empty() ? section : group);
  };
  defaults.fields(visit);
}

}  // namespace moh::cli
