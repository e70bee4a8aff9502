#include "common/scratch.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>

namespace ccamerge {
namespace {

struct Scratch {
  std::mutex mutex;
  std::string folder;
  std::size_t from = 0;
  std::map<void*, std::size_t> mapped;  // and their sizes in bytes
  std::atomic<std::size_t> count{0};    // of these: memory is released without the lock while none
};

Scratch& scratch() {
  static auto* instance = new Scratch;  // never destroyed: totals may outlive static destructors
  return *instance;
}

[[noreturn]] void fail(const std::string& folder, std::size_t bytes, int error) {
  throw std::runtime_error("scratch: no room for " + std::to_string(bytes) + " bytes in " + folder +
                           ": " + std::strerror(error));
}

void* mapped_file(const std::string& folder, std::size_t bytes) {
  std::string name = folder + "/ccamerge-XXXXXX";
  const int file = mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) fail(folder, bytes, errno);
  unlink(name.c_str());
  // Room is taken at once: a file with holes would end the process when it is written to.
  int error = posix_fallocate(file, 0, static_cast<off_t>(bytes));
  void* memory = MAP_FAILED;
  if (error == 0) {
    memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    error = errno;
  }
  close(file);
  if (memory == MAP_FAILED) fail(folder, bytes, error);
  return memory;
}

}  // namespace

void set_scratch(const std::string& folder, std::size_t bytes) {
  std::lock_guard lock(scratch().mutex);
  scratch().folder = folder;
  scratch().from = bytes;
}

void* allocate_totals(std::size_t bytes) {
  Scratch& own = scratch();
  std::string folder;
  {
    std::lock_guard lock(own.mutex);
    if (!own.folder.empty() && bytes >= own.from) folder = own.folder;
  }
  if (folder.empty()) return ::operator new(bytes);
  void* const memory = mapped_file(folder, bytes);
  std::lock_guard lock(own.mutex);
  try {
    own.mapped.emplace(memory, bytes);
  } catch (...) {
    munmap(memory, bytes);
    throw;
  }
  ++own.count;
  return memory;
}

void release_totals(void* memory) noexcept {
  Scratch& own = scratch();
  if (own.count > 0) {
    std::lock_guard lock(own.mutex);
    const auto found = own.mapped.find(memory);
    if (found != own.mapped.end()) {
      munmap(memory, found->second);
      own.mapped.erase(found);
      --own.count;
      return;
    }
  }
  ::operator delete(memory);
}

}  // namespace ccamerge
