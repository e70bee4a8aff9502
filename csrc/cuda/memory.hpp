// Device memory from whoever calls: torch's or CuPy's caching allocator, so that nothing is held
// back from them. What is freed may still be read by work already in the stream that it was
// allocated for; such allocators know.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <type_traits>

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

// Returns at least so many bytes, aligned to 256; throws if there are not so many.
using Allocate = std::function<Buffer(std::size_t bytes)>;

// One allocation, shared out. `lay_out(part)` names its parts by part(count, pointer&), and is
// called twice: once to count the bytes, once to set the pointers.
class Arena {
 public:
  template <class LayOut>
  Arena(const Allocate& allocate, LayOut&& lay_out) {
    lay_out([this](std::size_t count, auto*& at) { bytes_ += rounded(count * sizeof(*at)); });
    memory_ = allocate(bytes_ ? bytes_ : 1);
    std::byte* next = memory_.data;
    lay_out([&next](std::size_t count, auto*& at) {
      at = reinterpret_cast<std::remove_reference_t<decltype(at)>>(next);
      next += rounded(count * sizeof(*at));
    });
  }

  std::size_t bytes() const { return bytes_; }
  const Buffer& memory() const { return memory_; }

 private:
  static std::size_t rounded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

  Buffer memory_;
  std::size_t bytes_ = 0;
};

}  // namespace ccamerge::cuda
