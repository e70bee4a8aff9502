// Batched symmetric-definite generalised eigenproblems.
#pragma once

#include <string>
#include <vector>

#include "matrix.hpp"
#include "whitening.hpp"

namespace ccamerge {

struct GevpProblem {
  ConstView a;  // (n, n) symmetric
  ConstView b;  // (n, n) symmetric, positive definite once regularised
  int k = 0;    // eigenpairs wanted, the largest, 1 <= k <= n
};

struct GevpSolution {
  Matrix values;   // (k, 1) descending
  Matrix vectors;  // (k, n), eigenvectors in rows: a C-order (n, k) array's storage
};

// A v = w (B + gamma I) v for each problem, in parallel, by the Cholesky factor of B + gamma I. A
// vector's sign makes its largest entry positive. Errors as in solve_cca.
std::vector<GevpSolution> solve_gevp(const std::vector<GevpProblem>& problems,
                                     const std::vector<std::string>& names,
                                     const Regulariser& regulariser);

}  // namespace ccamerge
