// What limits the number of threads: OpenMP's setting, and quotas of made-up control groups.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/cores.hpp"
#include "common/parallel.hpp"
#include "testing.hpp"

namespace {

using namespace ccamerge;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  ++testing::failures;
}

void test_settings() {
  const std::pair<const char*, std::optional<int>> cases[] = {
      {nullptr, {}}, {"", {}},    {"many", {}}, {"0", {}},   {"-3", {}},
      {"4x", {}},    {"1", 1},    {" 3 ", 3},   {"4,2", 4},  {"2 , 1", 2},
      {",2", {}},    {"1e3", {}}, {"007", 7},   {"4 2", {}}, {"99999999999999999999", 2147483647},
  };
  for (const auto& [text, count] : cases) {
    expect(first_thread_count(text) == count, std::string("setting ") + (text ? text : "none"));
  }
}

// A root directory with the files of /proc and /sys that matter, removed afterwards.
class Root {
 public:
  explicit Root(const std::vector<std::pair<std::string, std::string>>& files) {
    path_ = (std::filesystem::temp_directory_path() / "ccamerge-cores-XXXXXX").string();
    expect(mkdtemp(path_.data()) != nullptr, "a directory");
    for (const auto& [name, text] : files) {
      const std::filesystem::path file = path_ + name;
      std::filesystem::create_directories(file.parent_path());
      std::ofstream(file) << text;
    }
  }
  ~Root() { std::filesystem::remove_all(path_); }
  Root(const Root&) = delete;
  Root& operator=(const Root&) = delete;

  std::optional<int> cores() const { return quota_cores(path_); }

 private:
  std::string path_;
};

const std::string mountinfo = "/proc/self/mountinfo", cgroup = "/proc/self/cgroup";
const std::string other = "22 1 0:21 / / rw - ext4 /dev/root rw\n";
const std::string v2 = other + "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 none rw\n";

void test_version_two() {
  expect(!Root({}).cores(), "nothing is known");
  expect(!Root({{mountinfo, other}, {cgroup, "0::/\n"}}).cores(), "no hierarchy");
  expect(!Root({{mountinfo, v2}, {cgroup, "0::/\n"}}).cores(), "no file at the top");
  const std::string top = "/sys/fs/cgroup";
  expect(
      Root({{mountinfo, v2}, {cgroup, "0::/\n"}, {top + "/cpu.max", "200000 100000\n"}}).cores() ==
          2,
      "two cores at the top");
  const auto own = [&](const std::string& text) {
    return Root({{mountinfo, v2}, {cgroup, "0::/a/b\n"}, {top + "/a/b/cpu.max", text}}).cores();
  };
  expect(!own("max 100000\n"), "no quota");
  expect(own("150000 100000\n") == 2, "rounded up");
  expect(own("1000 100000\n") == 1, "at least one");
  expect(own("300000 100000\n") == 3, "exact");
  expect(!own("nonsense"), "unreadable");
  expect(Root({{mountinfo, v2},
               {cgroup, "0::/a/b\n"},
               {top + "/a/b/cpu.max", "max 100000\n"},
               {top + "/a/cpu.max", "400000 100000\n"},
               {top + "/cpu.max", "700000 100000\n"}})
                 .cores() == 4,
         "the least of all above");
}

void test_version_one() {
  const std::string one =
      other +
      "31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
      "32 22 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
  const std::string groups = "5:memory:/m\n4:cpu,cpuacct:/job/1\n1:name=systemd:/s\n";
  const std::string at = "/sys/fs/cgroup/cpu,cpuacct/job/1/";
  const auto found = [&](const std::string& quota, const std::string& period) {
    return Root({{mountinfo, one},
                 {cgroup, groups},
                 {at + "cpu.cfs_quota_us", quota},
                 {at + "cpu.cfs_period_us", period}})
        .cores();
  };
  expect(found("250000", "100000") == 3, "rounded up");
  expect(!found("-1", "100000"), "no quota");
  expect(!found("100000", "0"), "no period");
}

// A container may see only its own part of the hierarchy, under the host's names.
void test_containers() {
  const std::string part =
      other + "30 22 0:26 /docker/77 /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n";
  for (const char* group :
       {"0::/docker/77\n", "0::/docker/77/sub\n", "0::/elsewhere\n", "0::/\n"}) {
    expect(Root({{mountinfo, part}, {cgroup, group}, {"/sys/fs/cgroup/cpu.max", "100000 100000\n"}})
                   .cores() == 1,
           group);
  }
}

void test_what_decides() {
  expect(usable_threads().count >= 1 && thread_limit().count == num_threads(), "one number");
  follow_torch_threads(1);
  expect(num_threads() == 1, "torch's, where that is less");
  follow_torch_threads(kMostThreads);
  expect(num_threads() == std::min(usable_threads().count, kMostThreads), "or not");
  set_num_threads(kMostThreads);
  expect(num_threads() == kMostThreads && std::string(thread_limit().source) == "set_num_threads",
         "what is set decides");
}

}  // namespace

int main() {
  test_settings();
  test_version_two();
  test_version_one();
  test_containers();
  test_what_decides();
  return testing::result();
}
