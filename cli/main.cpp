// Finds the command, parses its options, runs it, and turns errors into one line and an exit status.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>

#include "cli/command.h"
#include "cli/config_file.h"
#include "cli/processes.h"
#include "cli/progress.h"
#include "cli/usage.h"
#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/autocast.h"
#include "moh/ops/cores.h"

namespace moh::cli {

std::atomic<bool> interrupted{false};

void end_at_once_when_interrupted() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

std::vector<Command>& commands() {
  static std::vector<Command> all;
  return all;
}

void Context::emit(const Json& line) const {
  if (quiet || !json) return;
  clear_progress();  // both may be one terminal
  fmt::print("{}\n", line.dump(-1, ' ', false, Json::error_handler_t::replace));
  std::fflush(stdout);
}

void Context::say(const std::string& text) const {
  if (quiet) return;
  clear_progress();
  std::FILE* stream = json ? stderr : stdout;
  fmt::print(stream, "{}\n", text);
  std::fflush(stream);
}

void Context::apply() const {
  if (threads > 0) {
    at::set_num_threads(threads);
  } else {
    ops::use_available_cores();
  }
  kernels::force_backend(backend);
  torch_device();
}

at::Device Context::torch_device() const {
  const bool is_cuda = device == "cuda" || device.starts_with("cuda:");
  MOH_CHECK(device == "cpu" || is_cuda, "[device] unknown device `", device, "`; known: cpu, cuda, cuda:i");
  if (!is_cuda) return at::kCPU;
  MOH_CHECK(at::globalContext().hasCUDA(), "[device] `", device,
            "` is not available: this torch has no CUDA or finds no GPU; leave --device out to run on the CPU");
  return at::Device(device);
}

std::optional<at::ScalarType> Context::autocast_type() const {
  return dtype == "auto" ? std::nullopt : ops::autocast_type(dtype);
}

std::optional<at::ScalarType> Context::weights_type() const {
  if (dtype == "auto") return std::nullopt;
  return ops::autocast_type(dtype).value_or(at::kFloat);
}

namespace {

// Second Ctrl-C ends at once.
void on_interrupt(int) {
  if (interrupted.exchange(true)) _exit(kInterruptedStatus);
}

std::string shell_word(const std::string& word) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=.,/:+@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

void add_common_options(CLI::App& sub, const Command& command, Context& context) {
  const std::string group = kCommonGroup;
  sub.add_flag("--json", context.json, "one JSON object a line on stdout, people's text on stderr")->group(group);
  sub.add_option("--device", context.device, "cpu or cuda[:i]")->group(group);
  if (sub.get_option_no_throw("--dtype") == nullptr) {
    sub.add_option("--dtype", context.dtype, "fp32, bf16 or fp16; auto: as the checkpoint has it")
        ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}))
        ->group(group);
  }
  if (sub.get_option_no_throw("--threads") == nullptr) {
    sub.add_option("--threads", context.threads, "CPU threads; 0: all cores that the process may use")->group(group);
  }
  if (sub.get_option_no_throw("--seed") == nullptr) {
    sub.add_option("--seed", context.seed, "random seed")->group(group);
  }
  sub.add_option("--backend", context.backend, "insist on an attention backend; see `moh info`")->group(group);
  sub.add_option("--read-as", context.read_as,
                 "a LLaMA folder without an object `moh` is: auto (by `auto_map`), dense, or moh-llama (the authors' "
                 "MoH-LLaMA3, h/2 shared heads and h/4 routed)")
      ->check(CLI::IsMember({"auto", "dense", "moh-llama"}))
      ->group(group);
  auto* config = sub.add_option("--config", context.config_file,
                                fmt::format("TOML file with sections [{}]", fmt::join(command.sections, "], [")));
  if (command.sections.empty()) {
    config->group("");  // what it holds is told to be of no use here
    return;
  }
  config->group(group);
  sub.add_option("--SECTION.KEY", "set one value of a section, e.g. --train.lr 3e-4")->group(group);
}

// A section that the command does not read would be ignored in silence.
void check_sections(const Context& context, const Command& command) {
  for (const auto& section : context.sections.items()) {
    const auto& own = command.sections;
    if (std::find(own.begin(), own.end(), section.key()) != own.end() || section.value().empty()) continue;
    std::string readers;
    for (const Command& other : commands()) {
      if (std::find(other.sections.begin(), other.sections.end(), section.key()) == other.sections.end()) continue;
      readers += fmt::format("{}`moh {}`", readers.empty() ? "" : ", ", other.name);
    }
    fail("[config] `moh ", command.name, "` does not read --", section.key(), ".", section.value().begin().key(), "; [",
         section.key(), "] is for ", readers);
  }
}

int run(int argc, char** argv) {
  CLI::App app{"Mixture-of-Head attention: every token uses only the heads it needs, and the others cost nothing."};
  app.name("moh");
  app.set_version_flag("--version", "moh " MOH_VERSION);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default();
  app.footer("`moh help COMMAND` tells a command's options.");
  Context context;
  context.arguments = without_help_command({argv + 1, argv + argc});
  const Command* chosen = nullptr;
  auto all = commands();
  std::sort(all.begin(), all.end(),
            [](const Command& a, const Command& b) { return std::string_view(a.name) < b.name; });
  std::vector<Run> runs(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    CLI::App* sub = app.add_subcommand(all[i].name, all[i].summary);
    sub->option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    runs[i] = all[i].setup(*sub, context);
    add_common_options(*sub, all[i], context);
    sub->parse_complete_callback([&chosen, &all, i] { chosen = &all[i]; });
  }
  std::vector<std::string> arguments = context.arguments;
  context.command = "moh";
  for (const std::string& argument : arguments) context.command += " " + shell_word(argument);
  try {
    context.sections = take_section_arguments(arguments);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    fmt::print(stderr, "moh: error: {}\n", explain(app, context.arguments, error));
    return kUsageStatus;
  }
  context.given_sections = context.sections;
  if (!context.config_file.empty()) {
    Json merged = read_toml(context.config_file);
    merged.merge_patch(context.sections);
    context.sections = merged;
  }
  check_sections(context, *chosen);
  context.apply();
  show_activities(context.quiet);
  return runs[static_cast<std::size_t>(chosen - all.data())]();
}

}  // namespace
}  // namespace moh::cli

int main(int argc, char** argv) {
  struct sigaction action {};
  action.sa_handler = moh::cli::on_interrupt;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return moh::cli::run(argc, argv);
  } catch (const moh::Interrupted&) {
    moh::cli::clear_progress();
    fmt::print(stderr, "moh: interrupted\n");
    return moh::cli::kInterruptedStatus;
  } catch (const c10::Error& error) {
    moh::cli::clear_progress();
    return moh::cli::end_with_error(error.what_without_backtrace(), false);
  } catch (const moh::distributed::ToldElsewhere& error) {
    moh::cli::clear_progress();
    return moh::cli::end_with_error(error.what(), true);
  } catch (const std::exception& error) {
    moh::cli::clear_progress();
    return moh::cli::end_with_error(error.what(), false);
  }
}
