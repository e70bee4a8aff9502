#include "common/team.hpp"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>

namespace ccamerge {
namespace {

// Part of the ABI of GCC's OpenMP runtime; compiled code calls it for every parallel region.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// What the dynamic loader has loaded. Several packages bring an OpenMP runtime of their own, each
// with its own threads; only torch's will do.
struct Search {
  unsigned long long searched = 0;  // number of loads at the last search that found nothing
  unsigned long long loads = 0;     // so far
  std::string path;
};

int look_at(dl_phdr_info* info, std::size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  search.loads = info->dlpi_adds;
  if (search.loads == search.searched) return 1;  // nothing new since
  if (std::strstr(info->dlpi_name, "/torch/lib/libgomp") == nullptr) return 0;
  search.path = info->dlpi_name;
  return 1;
}

// Null until torch has been imported. The runtime is never unloaded.
Parallel torch_parallel() {
  static std::mutex mutex;
  static Search search;
  static Parallel found = nullptr;
  std::lock_guard lock(mutex);
  if (found) return found;
  dl_iterate_phdr(look_at, &search);
  search.searched = search.loads;
  if (search.path.empty()) return nullptr;
  if (void* library = dlopen(search.path.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
    found = reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
  }
  search.path.clear();
  return found;
}

// Whether this process was forked and has not executed a program since: the kernel's PF_FORKNOEXEC
// in the ninth field of /proc/self/stat (see proc(5)). True if that cannot be read.
bool forked_without_exec() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const std::size_t end = line.rfind(')');  // of the program's name, which may hold anything
  if (end == std::string::npos) return true;
  std::istringstream rest(line.substr(end + 1));
  std::string skipped;
  for (int field = 3; field < 9; ++field) rest >> skipped;
  unsigned long flags = 0;
  return !(rest >> flags) || (flags & 0x40) != 0;
}

// The runtime's threads do not exist in a forked child, where waiting for them would never end;
// whether the parent had any cannot be known, and the child may be the first to load this.
const bool loaded_in_a_fork = forked_without_exec();
const pid_t loaded_in = getpid();

using Clock = std::chrono::steady_clock;

// Waiting beyond the work itself that a region may take: some wakings of a thread.
constexpr auto tolerated = std::chrono::milliseconds(2);
// How long the threads are left alone after one that took longer.
constexpr auto pause = std::chrono::seconds(1);

std::atomic<Clock::rep> not_before{Clock::time_point::min().time_since_epoch().count()};

struct Region {
  const std::function<void()>* body;
  std::thread::id caller = std::this_thread::get_id();
  Clock::duration worked{};  // by the caller
};

}  // namespace

bool run_on_torch_threads(int threads, const std::function<void()>& body) {
  if (loaded_in_a_fork || getpid() != loaded_in) return false;
  const auto began = Clock::now();
  if (began.time_since_epoch().count() < not_before.load(std::memory_order_relaxed)) return false;
  const Parallel parallel = torch_parallel();
  if (!parallel) return false;
  Region region{&body};
  const auto call = [](void* data) {
    auto& region = *static_cast<Region*>(data);
    const auto start = Clock::now();
    (*region.body)();
    if (std::this_thread::get_id() == region.caller) region.worked = Clock::now() - start;
  };
  parallel(call, &region, static_cast<unsigned>(threads), 0);
  const auto ended = Clock::now();
  if (ended - began - region.worked > tolerated + region.worked / 2) {
    not_before.store((ended + pause).time_since_epoch().count(), std::memory_order_relaxed);
  }
  return true;
}

bool torch_threads_found() {
  return !loaded_in_a_fork && getpid() == loaded_in && torch_parallel() != nullptr;
}

}  // namespace ccamerge
