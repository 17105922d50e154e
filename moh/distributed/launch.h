// Starts a program several times on this machine, as torchrun would, without Python.
#pragma once

#include <atomic>
#include <string>
#include <vector>

namespace moh::distributed {

// Runs `program` with `arguments` (without its name) as `processes` processes that find one another by
// membership_from_environment. `stop` is passed on to them as SIGTERM. When one fails, the others are given a little
// time to say so and end, then they are killed. Returns the exit status of the one that failed first, else 0.
int launch(const std::string& program, const std::vector<std::string>& arguments, int processes,
           const std::atomic<bool>& stop);

// To be called by a process that launch() started, at its beginning: it ends when the one that started it is gone.
void end_with_launcher();

}  // namespace moh::distributed
