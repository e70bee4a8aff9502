// Cholesky factors of small diagonal blocks and the factors' inverses. Asynchronous.
#pragma once

#include "common/stack.hpp"
#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

// Order of the largest block.
inline constexpr int kCholeskyBlock = 64;

// a (n, n), n <= kCholeskyBlock, from its lower triangle becomes the lower factor, `inverse` that
// factor's inverse, both with zeros above. info (count,): where it is 0 and a member is not
// positive definite, it becomes at + the order of the leading minor; the member is left undefined.
void factor_block(View a, View inverse, int at, int* info, cudaStream_t stream);

}  // namespace ccamerge::cuda
