// Polar factors of singular matrices, by decompositions in host memory: rare, so that no backend
// needs more than products for what is common.
#pragma once

#include <vector>

#include "cpu/solve/matrix.hpp"

namespace ccamerge {

[[noreturn]] void svd_did_not_converge(int m, int n);

// left right, to be added to q, joins null spaces u2 (m, .) and v2 (n, .) as near the identity as
// can be: u2 polar(u2^T I v2) v2^T, with I = eye(m, n). Empty where there is nothing to join.
struct NullSpaceLink {
  Matrix left;   // (m, k)
  Matrix right;  // (k, n)
};
NullSpaceLink link_null_spaces(ConstView u2, ConstView v2);

// The polar factor of a, singular values at or below rank_tolerance * (the largest) counting as
// zero, with linked null spaces. NumericalError if the SVD does not converge.
struct SvdPolar {
  Matrix q;
  int rank = 0;
};
SvdPolar polar_by_svd(Matrix a, double rank_tolerance);

// An orthonormal basis (r, r - c) of what the orthonormal columns of q (r, c) leave.
Matrix complement_of(ConstView q);

// A basis (n, n - rank) of the null space, given the coordinates that are alive and the basis of
// what is missing among those.
Matrix null_space(int n, const std::vector<int>& alive, const Matrix& missing);

}  // namespace ccamerge
