#include "cpu/solve/instances.hpp"

namespace ccamerge {

CCAMERGE_SOLVERS(, Cpu)

}  // namespace ccamerge
