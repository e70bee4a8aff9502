#include "team.hpp"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <string>

namespace ccamerge {
namespace {

// Part of the ABI of GCC's OpenMP runtime; compiled code calls it for every parallel region.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// What the dynamic loader has loaded. Several packages bring an OpenMP runtime of their own, each
// with its own threads; only torch's will do.
struct Search {
  unsigned long long loads;  // of the last search that found nothing
  bool searched = false;
  std::string path;
};

int look_at(dl_phdr_info* info, std::size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  if (search.searched && info->dlpi_adds == search.loads) return 1;  // nothing new since
  search.loads = info->dlpi_adds;
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
  search.searched = true;
  if (search.path.empty()) return nullptr;
  if (void* library = dlopen(search.path.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
    found = reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
  }
  search.path.clear();
  return found;
}

// The runtime's threads do not exist in a forked child, where waiting for them would never end. The
// loader runs this before anyone can fork on our account.
const pid_t loaded_in = getpid();

}  // namespace

bool run_on_torch_threads(int threads, const std::function<void()>& body) {
  if (getpid() != loaded_in) return false;
  const Parallel parallel = torch_parallel();
  if (!parallel) return false;
  const auto call = [](void* data) { (*static_cast<const std::function<void()>*>(data))(); };
  parallel(call, const_cast<std::function<void()>*>(&body), static_cast<unsigned>(threads), 0);
  return true;
}

}  // namespace ccamerge
