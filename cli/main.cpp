// Finds the command, parses its options, runs it, and turns errors into one line and an exit status.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "cli/command.h"
#include "cli/config_file.h"
#include "cli/processes.h"
#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/autocast.h"

namespace moh::cli {

std::atomic<bool> interrupted{false};

std::vector<Command>& commands() {
  static std::vector<Command> all;
  return all;
}

void Context::emit(const Json& line) const {
  if (quiet) return;
  if (json) fmt::print("{}\n", line.dump(-1, ' ', false, Json::error_handler_t::replace));
  std::fflush(stdout);
}

void Context::say(const std::string& text) const {
  if (quiet) return;
  std::FILE* stream = json ? stderr : stdout;
  fmt::print(stream, "{}\n", text);
  std::fflush(stream);
}

void Context::apply() const {
  if (threads > 0) at::set_num_threads(threads);
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

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

int run(int argc, char** argv) {
  CLI::App app{"Mixture-of-Head attention: every token uses only the heads it needs, and the others cost nothing."};
  app.name("moh");
  app.set_version_flag("--version", "moh " MOH_VERSION);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default();
  Context context;
  Run chosen;
  auto all = commands();
  std::sort(all.begin(), all.end(),
            [](const Command& a, const Command& b) { return std::string_view(a.name) < b.name; });
  std::vector<Run> runs(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    CLI::App* sub = app.add_subcommand(all[i].name, all[i].summary);
    sub->option_defaults()->always_capture_default()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    runs[i] = all[i].setup(*sub, context);
    const std::string group = "common";
    sub->add_flag("--json", context.json, "one JSON object a line on stdout, people's text on stderr")->group(group);
    sub->add_option("--device", context.device, "cpu or cuda[:i]")->group(group);
    if (sub->get_option_no_throw("--dtype") == nullptr) {
      sub->add_option("--dtype", context.dtype, "fp32, bf16 or fp16; auto: as the checkpoint has it")->group(group);
    }
    if (sub->get_option_no_throw("--threads") == nullptr) {
      sub->add_option("--threads", context.threads, "CPU threads; 0: all cores")->group(group);
    }
    if (sub->get_option_no_throw("--seed") == nullptr) {
      sub->add_option("--seed", context.seed, "random seed")->group(group);
    }
    sub->add_option("--backend", context.backend, "insist on an attention backend; see `moh info`")->group(group);
    sub->add_option(
           "--read-as", context.read_as,
           "a LLaMA folder without an object `moh` is: auto (by `auto_map`), dense, or moh-llama (the authors' "
           "MoH-LLaMA3, h/2 shared heads and h/4 routed)")
        ->check(CLI::IsMember({"auto", "dense", "moh-llama"}))
        ->group(group);
    sub->add_option("--config", context.config_file, "TOML file with sections [train], [model], [moh]")->group(group);
    sub->add_option("--SECTION.KEY", "set one value of a section, e.g. --model.num_hidden_layers 4")->group(group);
    sub->parse_complete_callback([&chosen, &runs, i] { chosen = runs[i]; });
  }
  std::vector<std::string> arguments(argv + 1, argv + argc);
  context.command = "moh";
  for (const std::string& argument : arguments) context.command += " " + shell_word(argument);
  try {
    context.sections = take_section_arguments(arguments);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    fmt::print(stderr, "moh: error: {}; see `moh {}--help`\n", first_line(error.what()),
               app.get_subcommands().empty() ? "" : app.get_subcommands()[0]->get_name() + " ");
    return 2;
  }
  if (!context.config_file.empty()) {
    Json merged = read_toml(context.config_file);
    merged.merge_patch(context.sections);
    context.sections = merged;
  }
  context.apply();
  return chosen();
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
  } catch (const c10::Error& error) {
    return moh::cli::end_with_error(error.what_without_backtrace(), false);
  } catch (const moh::distributed::ToldElsewhere& error) {
    return moh::cli::end_with_error(error.what(), true);
  } catch (const std::exception& error) {
    return moh::cli::end_with_error(error.what(), false);
  }
}
