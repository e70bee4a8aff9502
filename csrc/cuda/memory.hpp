// Device memory from whoever calls: torch's or CuPy's caching allocator, so that nothing is held
// back from them. What is freed may still be read by work already in the stream that it was
// allocated for; such allocators know.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace ccamerge::cuda {

// Memory and what keeps it alive. Copies share it.
struct Buffer {
  std::shared_ptr<void> owner;
  std::byte* data = nullptr;
  std::size_t bytes = 0;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// Returns at least so many bytes, aligned to 256; throws std::runtime_error that says how many were
// wanted.
using Allocate = std::function<Buffer(std::size_t bytes)>;

// One allocation, handed out in parts.
class Arena {
 public:
  // First count what is needed, then take it in the same order.
  template <class T>
  void need(std::size_t count) {
    needed_ += rounded(count * sizeof(T));
  }
  void allocate(const Allocate& allocate) { memory_ = allocate(needed_ ? needed_ : 1); }
  template <class T>
  T* take(std::size_t count) {
    T* const at = reinterpret_cast<T*>(memory_.data + used_);
    used_ += rounded(count * sizeof(T));
    return at;
  }
  std::size_t needed() const { return needed_; }
  const Buffer& memory() const { return memory_; }

 private:
  static std::size_t rounded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

  Buffer memory_;
  std::size_t needed_ = 0, used_ = 0;
};

}  // namespace ccamerge::cuda
