// Borrowing arrays through DLPack: nothing is copied, and the producer's capsule is kept while
// used.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "view.hpp"

namespace ccamerge::bind {

// A borrowed array and what keeps it alive. Destroy with the GIL held.
struct BorrowedArray {
  FeatureView view;
  pybind11::object owner;
};

// Where arrays are to be: in CPU memory, or on the CUDA device of a number from 0 on.
inline constexpr int kHost = -1;

// Splits array, features of the given model, into feature axes, in the given order, and sample
// axes. TypeError: no __dlpack__, or a dtype other than float16/32/64 and bfloat16. ValueError: not
// where it should be, no sample axis, an axis out of range or named twice. Arrays on a device are
// exported without synchronising with any stream.
BorrowedArray borrow_features(const pybind11::handle& array, const std::vector<std::int64_t>& axes,
                              std::size_t model, int device);

}  // namespace ccamerge::bind
