// How many CPUs this process may use: a container's share of a machine is often smaller than the machine.
#pragma once

#include <optional>
#include <string>

namespace moh {

// CPUs of the process's affinity mask, and no more than its control group's CPU quota, rounded; at least 1.
int available_cores();

// CPUs' worth of time that control groups allow, the least along the way up from the process's own; nullopt: no limit.
// `groups` is the text of /proc/self/cgroup, `root` the mount point (/sys/fs/cgroup); versions 1 and 2.
std::optional<double> cgroup_cpu_quota(const std::string& groups, const std::string& root);

}  // namespace moh
