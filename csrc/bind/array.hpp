// Borrowing arrays through DLPack: nothing is copied, and the producer's capsule is kept while
// used.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "common/view.hpp"

namespace ccamerge::bind {

// Where arrays are to be: in CPU memory, or on the CUDA device of a number from 0 on.
inline constexpr int kHost = -1;

// A borrowed array of any dtype, and what keeps it alive. Destroy with the GIL held.
struct BorrowedTensor {
  std::byte* data = nullptr;
  int code = 0, bits = 0;  // DLPack's
  std::vector<std::int64_t> shape, strides;
  pybind11::object owner;

  bool contiguous() const;  // in C order
};

// TypeError: no __dlpack__, or not to be read through it. ValueError: not where it should be, or
// elements that are not aligned.
// `name` is for messages. Arrays on a device are exported without synchronising with any stream.
BorrowedTensor borrow_tensor(const pybind11::handle& array, const std::string& name, int device);

// Features and what keeps them alive. Destroy with the GIL held.
struct BorrowedArray {
  FeatureView view;
  pybind11::object owner;
};

// Splits array, features of the given model, into feature axes, in the given order, and sample
// axes. TypeError: a dtype other than float16/32/64 and bfloat16. ValueError: no sample axis, an
// axis out of range or named twice. Both as borrow_tensor, too.
BorrowedArray borrow_features(const pybind11::handle& array, const std::vector<std::int64_t>& axes,
                              std::size_t model, int device);

}  // namespace ccamerge::bind
