// Polar factors of singular matrices, by decompositions in host memory: rare, so that no backend
// needs more than products for what is common.
#pragma once

#include <vector>

#include "host/matrix.hpp"

namespace ccamerge {

[[noreturn]] void svd_did_not_converge(int m, int n);

// Completes q (m, n), m >= n, of orthonormal columns but for its null space v2 (n, .), by a map of
// that on what q leaves of the rows, as near the identity as can be: adds
// u2 polar(u2^T I v2) v2^T with the null space u2 of q^T and I = eye(m, n). Where that determines
// nothing, some map that does not depend on the basis v2. Needs memory as q does.
void link_null_spaces(View q, ConstView v2);

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
