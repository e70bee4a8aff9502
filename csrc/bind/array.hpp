// Borrowing arrays through DLPack: nothing is copied, and the producer's capsule is kept while
// used.
#pragma once

#include <pybind11/pybind11.h>

#include "view.hpp"

namespace ccamerge::bind {

// A borrowed array and what keeps it alive. Destroy with the GIL held.
struct BorrowedArray {
  FeatureView view;
  pybind11::object owner;
};

// Splits array, features of the given model, into feature axis and sample axes.
// TypeError: no __dlpack__, or a dtype other than float16/32/64 and bfloat16.
// ValueError: not on the CPU, fewer than two axes, axis out of range.
BorrowedArray borrow_features(const pybind11::handle& array, std::int64_t axis, std::size_t model);

}  // namespace ccamerge::bind
