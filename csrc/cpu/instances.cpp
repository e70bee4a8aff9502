#include "cpu/instances.hpp"

namespace ccamerge {

CCAMERGE_SOLVERS(, Cpu)

}  // namespace ccamerge
