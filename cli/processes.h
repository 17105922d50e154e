// Commands that several processes work on: `--processes N`, or torchrun.
#pragma once

#include <string>

#include "cli/command.h"
#include "moh/distributed/group.h"

namespace moh::cli {

// The group that this process is in; the group of one unless with_processes met others.
const distributed::Group& group();

// Adds --processes and --collective-timeout to `app`. The result starts that many processes of this command and waits
// for them; or, in one of several processes, meets the others, runs `run` and leaves with them. Started again by
// torchrun after a failure, it goes on as with --resume.
Run with_processes(CLI::App& app, Context& context, Run run);

// Tells the user of an error that ends this process, unless another process of the group has, and torchrun, and does
// not wait for others. Returns the exit status if the process is alone.
int end_with_error(const std::string& message, bool told_elsewhere);

}  // namespace moh::cli
