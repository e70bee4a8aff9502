#include "common/cores.hpp"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>
#include <vector>

namespace ccamerge {
namespace {

// A hierarchy of control groups: where it is mounted, and which group that shows.
struct Mount {
  std::string root, at;
  bool unified;  // version 2
};

bool lists(const std::string& names, const std::string& name) {
  std::istringstream in(names);
  for (std::string one; std::getline(in, one, ',');) {
    if (one == name) return true;
  }
  return false;
}

// Lines of mountinfo: see proc(5). Optional fields end with a hyphen.
std::vector<Mount> cpu_mounts(const std::string& root) {
  std::vector<Mount> out;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream in(line);
    std::string skipped, group, at, type, source, options;
    in >> skipped >> skipped >> skipped >> group >> at;
    while (in >> skipped && skipped != "-") {
    }
    in >> type >> source >> options;
    if (type == "cgroup2") out.push_back({group, at, true});
    if (type == "cgroup" && lists(options, "cpu")) out.push_back({group, at, false});
  }
  return out;
}

// This process's group in the hierarchy of version 2, or that of version 1 with the controller cpu.
std::string own_group(const std::string& root, bool unified) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (unified ? line.rfind("0::", 0) == 0 : lists(controllers, "cpu")) {
      return line.substr(second + 1);
    }
  }
  return "/";
}

double number_in(const std::string& path) {
  double value = 0;
  std::ifstream file(path);
  return file >> value ? value : 0;  // "max", and no file, are no number
}

// Cores that one group may use, infinity without a quota.
double cores_of(const std::string& folder, bool unified) {
  double quota = 0, period = 0;
  if (unified) {
    std::ifstream file(folder + "/cpu.max");
    if (!(file >> quota >> period)) return std::numeric_limits<double>::infinity();
  } else {
    quota = number_in(folder + "/cpu.cfs_quota_us");
    period = number_in(folder + "/cpu.cfs_period_us");
  }
  return quota > 0 && period > 0 ? quota / period : std::numeric_limits<double>::infinity();
}

// The group's path below what the mount shows. In a container the group may be named as the host
// has it: then the mount's top is the container's own.
std::string below(const Mount& mount, const std::string& group) {
  if (mount.root == "/") return group;
  if (group.rfind(mount.root, 0) == 0) return group.substr(mount.root.size());
  return "/";
}

int allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

std::optional<int> first_thread_count(const char* list) {
  if (!list) return {};
  char* end = nullptr;
  const long count = std::strtol(list, &end, 10);
  while (end && *end == ' ') ++end;
  if (end == list || (*end != '\0' && *end != ',') || count < 1) return {};
  return static_cast<int>(std::min<long>(count, std::numeric_limits<int>::max()));
}

std::optional<int> quota_cores(const std::string& root) {
  double least = std::numeric_limits<double>::infinity();
  for (const Mount& mount : cpu_mounts(root)) {
    std::string group = below(mount, own_group(root, mount.unified));
    for (;;) {  // a group has no more than those above it
      while (!group.empty() && group.back() == '/') group.pop_back();
      least = std::min(least, cores_of(root + mount.at + group, mount.unified));
      if (group.empty()) break;
      group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
    }
  }
  if (std::isinf(least)) return {};
  return static_cast<int>(std::clamp(std::ceil(least - 1e-9), 1.0, 1e6));
}

ThreadLimit usable_threads() {
  static const auto setting = first_thread_count(std::getenv("OMP_NUM_THREADS"));
  static const auto quota = quota_cores();
  ThreadLimit least{"the cores that this process may run on", allowed_cores()};
  if (quota && *quota < least.count) least = {"the processor time that its cgroup allows", *quota};
  if (setting && *setting < least.count) least = {"OMP_NUM_THREADS", *setting};
  return least;
}

}  // namespace ccamerge
