#include "cuda/instances.hpp"

namespace ccamerge {

CCAMERGE_SOLVERS(, cuda::Gpu)

}  // namespace ccamerge
