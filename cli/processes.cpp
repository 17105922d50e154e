#include "cli/processes.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>

#include "moh/base/error.h"
#include "moh/base/trace.h"
#include "moh/distributed/launch.h"
#include "moh/distributed/membership.h"
#include "moh/io/files.h"

namespace moh::cli {
namespace {

std::unique_ptr<distributed::Group> joined;
bool meeting = false;  // with the others, which nobody else can say how it failed

// torchrun and the terminal may both pass on one Ctrl-C; a second one that ends at once comes later.
volatile std::sig_atomic_t first_signal_at = 0;
void on_signal(int) {
  constexpr std::time_t kSameSignal = 2;
  const auto now = static_cast<std::sig_atomic_t>(std::time(nullptr));
  if (!interrupted.exchange(true)) {
    first_signal_at = now;
  } else if (now - first_signal_at > kSameSignal) {
    _exit(kInterruptedStatus);
  }
}

std::vector<std::string> own_arguments() {
  std::vector<std::string> arguments;
  std::string text;
  std::FILE* file = std::fopen("/proc/self/cmdline", "rb");
  MOH_CHECK(file != nullptr, "[distributed] cannot read /proc/self/cmdline");
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) {
    if (c != 0) {
      text += static_cast<char>(c);
    } else {
      arguments.push_back(std::exchange(text, ""));
    }
  }
  std::fclose(file);
  arguments.erase(arguments.begin());
  return arguments;
}

// Cores are shared by the processes of this machine, unless the user says otherwise.
void share_threads(const Context& context) {
  const char* local = std::getenv("LOCAL_WORLD_SIZE");
  if (context.threads > 0 || local == nullptr || std::getenv("OMP_NUM_THREADS") != nullptr) return;
  at::set_num_threads(std::max(1, at::get_num_threads() / std::max(1, std::atoi(local))));
}

void resume_after_restart(CLI::App& app) {
  if (distributed::restarts_from_environment() == 0 || app.get_option("--resume")->count() > 0) return;
  const CLI::Option* out = app.get_option("--out");
  if (out->count() == 0) return;
  const std::string record = out->as<std::string>() + "/run.json";
  const std::string there =
      group().from_first([&] { return std::filesystem::exists(record) ? "yes" : "no"; }, "training folder");
  if (there != "yes") return;  // ended before it began
  app.get_option("--resume")->add_result("true");
  app.get_option("--resume")->run_callback();
}

struct Options {
  int processes = 1;
  double timeout = 600;
  std::string profile;
};

// Runs it, with a trace if one is wanted: FILE, or FILE.RANK of each of several processes.
int traced(const Run& run, const std::string& file) {
  if (file.empty()) return run();
  trace::start();
  const int status = run();
  const int rank = group().rank();
  io::write_file(group().alone() ? file : file + "." + std::to_string(rank), trace::finish(rank));
  return status;
}

}  // namespace

const distributed::Group& group() { return joined ? *joined : distributed::alone(); }

Run with_processes(CLI::App& app, Context& context, Run run) {
  auto options = std::make_shared<Options>();
  const char* const name = "processes";
  app.add_option("--processes", options->processes,
                 "processes that share the batch, the optimizer's state and the checkpoints, started on this machine; "
                 "on several machines torchrun starts them, without this flag")
      ->check(CLI::Range(1, 4096))
      ->group(name);
  app.add_option("--collective-timeout", options->timeout,
                 "seconds after which processes that wait for another one end, naming it")
      ->check(CLI::PositiveNumber)
      ->group(name);
  app.add_option(
         "--profile", options->profile,
         "file for a trace that Chrome and Perfetto show: forward, backward, messages on their way; FILE.RANK of "
         "each of several processes")
      ->group(name);
  return [options, &app, &context, run = std::move(run)] {
    auto membership = distributed::membership_from_environment();
    if (!membership) {
      if (options->processes > 1) {
        return distributed::launch(std::filesystem::read_symlink("/proc/self/exe"), own_arguments(), options->processes,
                                   interrupted);
      }
      resume_after_restart(app);
      return traced(run, options->profile);
    }
    MOH_CHECK(options->processes == 1 || options->processes == membership->size, "[distributed] --processes ",
              options->processes, " inside a group of ", membership->size, " that torchrun started; leave it out");
    MOH_CHECK(context.device == "cpu", "[distributed] several processes train on the CPU; --device ", context.device,
              " is for one process");
    distributed::end_with_launcher();
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    share_threads(context);
    membership->timeout = options->timeout;
    meeting = true;
    joined = std::make_unique<distributed::Group>(*membership);
    context.quiet = group().rank() != 0;
    resume_after_restart(app);
    const int status = traced(run, options->profile);
    joined->barrier("leaving");
    joined.reset();
    return status;
  };
}

int end_with_error(const std::string& message, bool told_elsewhere) {
  const std::string line = message.substr(0, message.find('\n'));
  // What every process finds by itself (a wrong flag) one of them says; after they met, the first to fail does.
  const char* rank = std::getenv("RANK");
  const bool speaks =
      joined ? !told_elsewhere && joined->claim_error(line) : meeting || rank == nullptr || rank == std::string("0");
  if (speaks) fmt::print(stderr, "moh: error: {}\n", line);
  distributed::write_error_file(line);
  if (joined) {
    std::fflush(nullptr);
    _exit(1);
  }
  return 1;
}

}  // namespace moh::cli
