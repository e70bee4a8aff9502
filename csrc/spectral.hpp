// A start for the block polar ascent: the leading eigenvectors of the matrix of all blocks.
#pragma once

#include <vector>

#include "blocks.hpp"

namespace ccamerge {

// Matrices q[i] (d_i, k) with orthonormal columns, k = min d_i: approximate leading k eigenvectors
// of the matrix of all w_i w_j K_ij, with zeros on its diagonal, each model's rows rounded to their
// polar factor. From `guess`, by subspace iteration with Chebyshev polynomials (Saad 1984; Zhou,
// Saad, Tiago & Chelikowsky 2006); only products with the blocks are formed. `lowest` bounds the
// eigenvalues from below. Empty if the iteration breaks down or leaves a model's rows deficient.
std::vector<Matrix> spectral_start(const Blocks& blocks, const std::vector<Matrix>& guess,
                                   double lowest);

}  // namespace ccamerge
