#include "cuda/solve/instances.hpp"

namespace ccamerge {

CCAMERGE_SOLVERS(, cuda::Gpu)

}  // namespace ccamerge
