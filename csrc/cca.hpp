// Canonical correlation analysis of many pairs of feature spaces, and the maps between them.
#pragma once

#include <string>
#include <vector>

#include "matrix.hpp"
#include "polar.hpp"
#include "whitening.hpp"

namespace ccamerge {

// Second moments of p features X (the reference) and q features Y.
struct CcaProblem {
  ConstView sxx;  // (p, p) symmetric
  ConstView syy;  // (q, q) symmetric
  ConstView syx;  // (q, p), the transpose of the cross moment X^T Y
};

struct CcaOptions {
  bool correlations = false;
  bool weights = false;  // implies the correlations
};

// With C = S + gamma I = L L^T on each side, K = Lx^-1 Sxy Ly^-T = U S V^T and the polar factor
// P = U V^T: everything is stored transposed, which a C-order array reads back as named.
struct CcaSolution {
  Matrix map;           // (p, q), the transpose of Ly^-T P^T Lx^T
  Matrix inverse;       // (q, p), the transpose of Lx^-T P Ly^T
  Matrix correlations;  // (k, 1) descending, k = min(p, q), on request
  Matrix x_weights;     // (k, p), the transpose of Lx^-T U, on request
  Matrix y_weights;     // (k, q), the transpose of Ly^-T V, on request
  int rank = 0;         // of K
  double x_condition = 0, y_condition = 0;
  PolarMethod method = PolarMethod::qdwh;
};

// Every problem with every regulariser, problem-major, in parallel. A covariance that several
// problems share (by address) is checked and factored once. `names` are as in "problems[3]: ", one
// for each problem, and start the messages of errors: std::invalid_argument for non-finite or
// asymmetric input, NumericalError for covariances too ill-conditioned to solve with.
//
// Source: Horoi et al., "Harmony in Diversity: Merging Neural Networks with Canonical Correlation
// Analysis", ICML 2024; any square root of the covariances gives the same map.
std::vector<CcaSolution> solve_cca(const std::vector<CcaProblem>& problems,
                                   const std::vector<std::string>& names,
                                   const std::vector<Regulariser>& regularisers,
                                   const CcaOptions& options);

}  // namespace ccamerge
