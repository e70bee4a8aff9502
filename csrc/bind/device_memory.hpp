// Device memory from a Python callable, and arrays on a device.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "array.hpp"
#include "cuda/memory.hpp"
#include "cuda/runtime.hpp"

namespace ccamerge::bind {

// `callable(nbytes)` returns an object with data_ptr(), which is kept as long as the memory is
// used. May be called without the GIL.
cuda::Allocate allocator_of(pybind11::object callable);

// The object that an allocator returned for this memory.
pybind11::object memory_of(const cuda::Buffer& buffer);

// Device memory of a float64 array in C order of the given number of axes. `name` is for messages;
// errors as borrow_tensor's, and ValueError or TypeError for another shape or dtype.
BorrowedTensor borrow_doubles(const pybind11::handle& array, std::size_t axes,
                              const std::string& name, int device);

inline cudaStream_t stream_of(std::uintptr_t stream) {
  return reinterpret_cast<cudaStream_t>(stream);
}

}  // namespace ccamerge::bind
