// Memory for matrices. Fresh pages cost as much as the arithmetic on them at orders of a few
// hundred, so large buffers ask for huge pages, and a batch recycles its temporaries.
#pragma once

#include <cstddef>

namespace ccamerge {

// Uninitialised; throws std::bad_alloc. Give back by release_buffer with the same size, or, when it
// outlives the core's calls (a NumPy array), by std::free.
double* acquire_buffer(std::size_t count);
void release_buffer(double* buffer, std::size_t count) noexcept;

// While any scope lives, released buffers are kept for the next acquire; the last one frees them.
class BufferScope {
 public:
  BufferScope();
  ~BufferScope();
  BufferScope(const BufferScope&) = delete;
  BufferScope& operator=(const BufferScope&) = delete;
};

}  // namespace ccamerge
