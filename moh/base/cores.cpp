#include "moh/base/cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace moh {
namespace {

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::optional<double> quotient(const std::string& quota, const std::string& period) {
  try {
    const double time = std::stod(quota), of = std::stod(period);
    if (time > 0 && of > 0) return time / of;  // version 1 writes -1 for no limit
  } catch (const std::exception&) {            // "max", or no such file
  }
  return std::nullopt;
}

// The limit of one folder.
std::optional<double> limit_of(const std::string& folder, bool is_v2) {
  if (!is_v2) return quotient(text_of(folder + "/cpu.cfs_quota_us"), text_of(folder + "/cpu.cfs_period_us"));
  std::istringstream words(text_of(folder + "/cpu.max"));
  std::string quota, period;
  words >> quota >> period;
  return quotient(quota, period);
}

bool lists_cpu(const std::string& controllers) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

int affinity_count() {
  // Machines with more than 1,024 CPUs need a larger mask than cpu_set_t.
  for (int cpus = CPU_SETSIZE; cpus <= 1 << 16; cpus *= 2) {
    std::vector<cpu_set_t> mask((cpus + CPU_SETSIZE - 1) / CPU_SETSIZE);
    const std::size_t bytes = mask.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, mask.data()) == 0) return CPU_COUNT_S(bytes, mask.data());
  }
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

std::optional<double> cgroup_cpu_quota(const std::string& groups, const std::string& root) {
  std::optional<double> least;
  const auto take = [&](const std::optional<double>& limit) {
    if (limit && (!least || *limit < *least)) least = limit;
  };
  std::istringstream lines(groups);
  for (std::string line; std::getline(lines, line);) {  // "id:controllers:/path"; version 2 has "0::/path"
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && !lists_cpu(controllers)) continue;
    const std::vector<std::string> mounts = is_v2 ? std::vector<std::string>{root, root + "/unified"}
                                                  : std::vector<std::string>{root + "/" + controllers, root + "/cpu"};
    // A path of the host's may not be there inside a container, whose own limit then stands at the mount point.
    for (;; path.resize(path.rfind('/'))) {
      if (path == "/") path.clear();
      for (const std::string& mount : mounts) take(limit_of(mount + path, is_v2));
      if (path.empty() || path.rfind('/') == std::string::npos) break;
    }
  }
  return least;
}

int available_cores() {
  int cores = affinity_count();
  if (const auto quota = cgroup_cpu_quota(text_of("/proc/self/cgroup"), "/sys/fs/cgroup")) {
    cores = std::min(cores, static_cast<int>(std::lround(std::min(*quota, 1e6))));
  }
  return std::max(cores, 1);
}

}  // namespace moh
