// The solvers on the CPU, compiled once in instances.cpp.
#pragma once

#include "cpu/solve/backend.hpp"
#include "solve/solvers.hpp"

namespace ccamerge {

CCAMERGE_SOLVERS(extern, Cpu)

}  // namespace ccamerge
