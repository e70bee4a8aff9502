// Errors that the core raises. The bindings translate them, in one place, to Python exceptions:
// std::invalid_argument -> ValueError, NumericalError -> numpy.linalg.LinAlgError,
// Interrupted -> the pending Python exception (KeyboardInterrupt).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ccamerge {

// A problem that no valid answer exists for in floating point; the message names the cure.
struct NumericalError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The caller asked to stop (Ctrl-C); thrown on the calling thread only.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

template <class... Args>
std::string format_message(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace ccamerge
