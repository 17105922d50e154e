// Which of several processes this one is, and where they meet: what torchrun puts into the environment, or
// `--processes` of the command (launch.h), which puts the same there.
#pragma once

#include <optional>
#include <string>

namespace moh::distributed {

struct Membership {
  int rank = 0, size = 1;
  std::string host;  // of the store where the processes meet
  int port = 0;
  bool store_elsewhere = false;  // torchrun's agent or the starting process keeps it; else process 0 does
  int attempt = 0;               // of torchrun, which starts all processes again after a failure
  double timeout = 600;          // seconds that one message may take
};

// nullopt: this process is alone (no RANK and WORLD_SIZE, or a WORLD_SIZE of 1). Errors: a variable that is missing or
// no number, named.
std::optional<Membership> membership_from_environment();

// How often torchrun has started this process again.
int restarts_from_environment();

// Writes TORCHELASTIC_ERROR_FILE, if torchrun named one, in the form that torchrun reads and shows.
void write_error_file(const std::string& message);

}  // namespace moh::distributed
