// Block polar ascent: orthogonal matrices for all models that agree with each other the most.
#pragma once

#include <vector>

#include "blocks.hpp"

namespace ccamerge {

struct AscentOptions {
  double tolerance;  // ends when a sweep adds no more than this share of the objective
  int sweeps;        // at most
  double noise;      // singular values below this share of the largest count as zero
  bool deficient;    // some directions are undetermined: leave those where they are
};

struct AscentResult {
  std::vector<double> objectives;  // before the first and after each sweep; never falls
  int rank = 0;                    // the least of the last sweep's pulls
  bool converged = false;          // else the sweeps ran out
};

// Raises sum over i < j of w_i w_j tr(q[i]^T K_ij q[j]) over q[i] (d_i, k) with orthonormal
// columns: q[i] <- polar(sum over j of w_j K_ij q[j]), model after model (ten Berge 1977). Where
// that converges slowly the steps are lengthened as in successive over-relaxation (Young 1954); a
// step that would lower the objective is taken at its plain length.
AscentResult ascend(const Blocks& blocks, std::vector<Matrix>& q, const AscentOptions& options);

}  // namespace ccamerge
