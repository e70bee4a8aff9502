// The solvers on a device, compiled once in instances.cpp.
#pragma once

#include "cuda/solve/backend.hpp"
#include "solve/solvers.hpp"

namespace ccamerge {

CCAMERGE_SOLVERS(extern, cuda::Gpu)

}  // namespace ccamerge
