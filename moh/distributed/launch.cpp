#include "moh/distributed/launch.h"

#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "moh/base/error.h"
#include "moh/distributed/store.h"

extern char** environ;

namespace moh::distributed {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kLauncher = "MOH_LAUNCHER";  // the process that started this one
constexpr std::chrono::milliseconds kLook{20};
constexpr std::chrono::seconds kGrace{10};

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (std::string& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

// In a process group of its own, so that Ctrl-C on the terminal reaches it once: from us.
pid_t start(const std::string& program, std::vector<std::string> arguments, std::vector<std::string> environment) {
  arguments.insert(arguments.begin(), program);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  pid_t process = 0;
  const int error = posix_spawn(&process, program.c_str(), nullptr, &attributes, pointers(arguments).data(),
                                pointers(environment).data());
  posix_spawnattr_destroy(&attributes);
  MOH_CHECK(error == 0, "[distributed] cannot start ", program, ": ", std::strerror(error));
  return process;
}

int exit_status(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

}  // namespace

int launch(const std::string& program, const std::vector<std::string>& arguments, int processes,
           const std::atomic<bool>& stop) {
  const StoreServer store;
  std::vector<std::string> common;
  for (char** entry = environ; *entry != nullptr; ++entry) common.emplace_back(*entry);
  common.push_back("WORLD_SIZE=" + std::to_string(processes));
  common.push_back("LOCAL_WORLD_SIZE=" + std::to_string(processes));
  common.push_back("MASTER_ADDR=127.0.0.1");
  common.push_back("MASTER_PORT=" + std::to_string(store.port()));
  common.push_back("TORCHELASTIC_USE_AGENT_STORE=True");
  common.push_back(std::string(kLauncher) + "=" + std::to_string(getpid()));

  std::vector<pid_t> running;
  const auto signal_all = [&](int signal) {
    for (const pid_t process : running) kill(process, signal);
  };
  try {
    for (int rank = 0; rank < processes; ++rank) {
      std::vector<std::string> environment = common;
      environment.push_back("RANK=" + std::to_string(rank));
      environment.push_back("LOCAL_RANK=" + std::to_string(rank));
      running.push_back(start(program, arguments, std::move(environment)));
    }
  } catch (...) {
    signal_all(SIGKILL);
    throw;
  }

  int failed = 0;
  bool stopped = false;
  Clock::time_point until = Clock::time_point::max();
  while (!running.empty()) {
    int status = 0;
    const pid_t ended = waitpid(-1, &status, WNOHANG);
    if (ended > 0) {
      std::erase(running, ended);
      if (exit_status(status) != 0 && failed == 0) {
        failed = exit_status(status);
        until = Clock::now() + kGrace;
      }
      continue;
    }
    if (stop && !stopped) {
      stopped = true;
      signal_all(SIGTERM);
    }
    if (Clock::now() > until) signal_all(SIGKILL);
    std::this_thread::sleep_for(kLook);
  }
  return failed;
}

void end_with_launcher() {
  const char* launcher = std::getenv(kLauncher);
  if (launcher == nullptr) return;
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (std::to_string(getppid()) != launcher) _exit(1);  // it was gone before we asked
}

}  // namespace moh::distributed
