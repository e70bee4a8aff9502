#include "usable_threads.hpp"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "parallel.hpp"
#include "team.hpp"

namespace ccamerge {
namespace {

int cores_of_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// Processors' worth of time in a folder of a cgroup, rounded up; 0 where there is no limit.
int quota_in(const std::string& folder) {
  std::string quota;
  double period = 0;
  if (std::ifstream file(folder + "/cpu.max"); file >> quota >> period) {
    // version 2: "max" or microseconds
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  const double time = std::strtod(quota.c_str(), nullptr);
  if (!(time > 0) || !(period > 0)) return 0;
  return static_cast<int>(std::clamp(std::ceil(time / period), 1.0, 1.0 * most_threads));
}

// The least quota of the process's cgroup and all above it.
int quota_of_cgroup() {
  const std::string root = "/sys/fs/cgroup";
  int least = 0;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) {
      continue;
    }
    const std::string top = controllers.empty() ? root : root + "/" + controllers;
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      if (path == "/") path.clear();
      const int found = quota_in(top + path);
      if (found > 0 && (least == 0 || found < least)) least = found;
      if (path.empty() || path.rfind('/') == std::string::npos) break;
    }
  }
  return least;
}

// The first number of OMP_NUM_THREADS; 0 if it is not set, or is none.
int openmp_setting() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const long number = text ? std::strtol(text, nullptr, 10) : 0;
  return static_cast<int>(std::clamp(number, 0L, 1L * most_threads));
}

}  // namespace

UsableThreads usable_threads() {
  // These do not change while a process runs, or not so that it should follow.
  static const int quota = quota_of_cgroup();
  static const int setting = openmp_setting();
  UsableThreads usable{cores_of_affinity(), "the cores that this process may run on"};
  const auto limit = [&usable](int count, const char* reason) {
    if (count > 0 && count < usable.count) usable = {count, reason};
  };
  limit(quota, "the processor time that its cgroup allows");
  limit(setting, "OMP_NUM_THREADS");
  limit(torch_threads(), "torch's number of threads");
  return usable;
}

}  // namespace ccamerge
