// All models aligned with each other, through one space that none of them owns.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "matrix.hpp"
#include "whitening.hpp"

namespace ccamerge {

// Second moments of one feature space in N >= 2 models.
struct UniverseProblem {
  std::vector<ConstView> own;              // (d_i, d_i) symmetric
  std::vector<ConstView> crosses;          // (d_j, d_i) for i < j: (0, 1), (0, 2), ..., (N-2, N-1)
  std::vector<double> weights;             // of the models, not negative, not all zero
  std::optional<Regulariser> regulariser;  // none: no whitening, the maps are rotations
};

struct UniverseOptions {
  int reference = 0;        // where the maps lead
  double tolerance = 1e-9;  // of the ascent: share of the objective
  int sweeps = 200;         // at most
};

// Everything is stored transposed, which a C-order array reads back as named.
struct UniverseSolution {
  std::vector<Matrix> maps;      // (d_i, d_r) for each model: the transpose of T_i
  std::vector<Matrix> inverses;  // (d_r, d_i)
  std::vector<double> objectives;
  std::vector<double> conditions;  // of each regularised covariance; empty without whitening
  int rank = 0;                    // least rank of what the others want of a model
  bool spectral = false;           // else the start was an alignment with one model
  bool converged = false;          // the last sweep added no more than the tolerance
};

// Every problem in parallel. With C_i = S_ii + gamma I = L_i L_i^T and K_ij = L_i^-1 S_ij L_j^-T,
// Q_i (d_i, k) with orthonormal columns, k = min d_i, raise sum over i < j of
// w_i w_j tr(Q_i^T K_ij Q_j), weights scaled to a mean of one. That minimises
// the weighted squared distances of the whitened features from their weighted mean.
// T_i = L_i^-T Q_i Q_r^T L_r^T
// and its inverse L_r^-T Q_r Q_i^T L_i^T. Everything but these last products is the same for every
// reference. `names` and errors as for solve_cca; messages add the model.
//
// Sources: ten Berge, Psychometrika 42 (1977), MAXBET; Kettenring, Biometrika 58 (1971), MAXVAR.
std::vector<UniverseSolution> solve_universe(const std::vector<UniverseProblem>& problems,
                                             const std::vector<std::string>& names,
                                             const UniverseOptions& options);

}  // namespace ccamerge
