#include "host/buffers.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace ccamerge {
namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21;
constexpr std::size_t kHugeFrom = 3 * kHugePage / 4;       // rounding up wastes at most a third
constexpr std::size_t kPooledFrom = std::size_t{1} << 15;  // smaller ones malloc serves well

struct Pool {
  std::mutex mutex;
  int scopes = 0;
  std::multimap<std::size_t, void*> idle;  // by size in bytes
};

Pool& pool() {
  static auto* instance = new Pool;  // never destroyed: arrays may outlive static destructors
  return *instance;
}

std::size_t bytes_for(std::size_t count) {
  const std::size_t bytes = count * sizeof(double);
  return bytes < kHugeFrom ? bytes : (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

}  // namespace

double* acquire_buffer(std::size_t count) {
  const std::size_t bytes = bytes_for(count);
  if (bytes >= kPooledFrom) {
    std::lock_guard lock(pool().mutex);
    const auto it = pool().idle.find(bytes);
    if (it != pool().idle.end()) {
      void* buffer = it->second;
      pool().idle.erase(it);
      return static_cast<double*>(buffer);
    }
  }
  void* buffer = nullptr;
  if (bytes < kHugeFrom) {
    buffer = std::malloc(bytes > 0 ? bytes : sizeof(double));
  } else {
    buffer = std::aligned_alloc(kHugePage, bytes);
    if (buffer) madvise(buffer, bytes, MADV_HUGEPAGE);  // a hint: failure changes nothing
  }
  if (!buffer) throw std::bad_alloc();
  return static_cast<double*>(buffer);
}

void release_buffer(double* buffer, std::size_t count) noexcept {
  const std::size_t bytes = bytes_for(count);
  if (buffer && bytes >= kPooledFrom) {
    std::lock_guard lock(pool().mutex);
    if (pool().scopes > 0) {
      try {
        pool().idle.emplace(bytes, buffer);
        return;
      } catch (const std::bad_alloc&) {  // no room to remember it: free it
      }
    }
  }
  std::free(buffer);
}

BufferScope::BufferScope() {
  std::lock_guard lock(pool().mutex);
  ++pool().scopes;
}

BufferScope::~BufferScope() {
  std::multimap<std::size_t, void*> idle;
  {
    std::lock_guard lock(pool().mutex);
    if (--pool().scopes > 0) return;
    idle.swap(pool().idle);
  }
  for (const auto& [bytes, buffer] : idle) std::free(buffer);
}

}  // namespace ccamerge
