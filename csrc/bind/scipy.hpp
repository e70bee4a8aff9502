// BLAS and LAPACK from SciPy, for whichever module computes on the CPU.
#pragma once

namespace ccamerge::bind {

// ImportError if SciPy's integers are not 32-bit.
void bind_scipy();

}  // namespace ccamerge::bind
