// Kernels that reduce the columns of stacks of matrices, for the solver's backend. Asynchronous;
// sums are formed in a fixed order.
#pragma once

#include "cuda/runtime.hpp"
#include "solve/backend.hpp"

namespace ccamerge::cuda {

// sums (count * cols) on the device, member after member.
void column_sums(ConstView a, Part part, ColumnSums* sums, cudaStream_t stream);
// dots (count * cols): of each column of a with the same of b.
void column_dots(ConstView a, ConstView b, double* dots, cudaStream_t stream);
// Flips columns so that the entry of largest magnitude, the first of equals, is positive.
void fix_signs(View a, cudaStream_t stream);

}  // namespace ccamerge::cuda
