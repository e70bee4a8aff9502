// How the core's errors, and Ctrl-C, become Python's.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "common/check.hpp"
#include "common/parallel.hpp"
#include "threads.hpp"

namespace ccamerge::bind {

// NumericalError -> numpy.linalg.LinAlgError; the rest are pybind11's defaults.
void register_errors();

// Releases the GIL, polls Python's signals while compute() runs, and turns a stop into the
// exception that the signal handler set (KeyboardInterrupt).
template <class F>
auto without_gil(F&& compute) {
  namespace py = pybind11;
  follow_torch();
  try {
    py::gil_scoped_release release;
    InterruptGuard guard([] {
      py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw Interrupted();
    });
    return std::forward<F>(compute)();
  } catch (const Interrupted&) {
    throw py::error_already_set();
  }
}

}  // namespace ccamerge::bind
