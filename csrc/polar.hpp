// The orthonormal polar factor of a matrix: the nearest matrix with orthonormal columns (or rows).
#pragma once

#include "matrix.hpp"

namespace ccamerge {

enum class PolarMethod { qdwh, svd };

struct Polar {
  Matrix q;  // (m, n) like the input; min(m, n) singular values of one
  int rank = 0;
  PolarMethod method = PolarMethod::qdwh;
};

// a (m, n), finite. Singular values at or below rank_tolerance * (the largest) count as zero; there
// the factor is not unique, and the one nearest the identity among the choices is returned:
// U1 V1^T + U2 polar(U2^T I V2) V2^T, with the null spaces U2, V2 and I = eye(m, n).
// rank_tolerance <= 0 means max(m, n) * eps. Throws NumericalError if an SVD does not converge.
Polar polar(Matrix a, double rank_tolerance = 0.0);

// a = U S V^T with thin factors; from the polar factor of a, by the
// eigenvectors of the Hermitian factor (Nakatsukasa & Higham 2013). Orders s descending.
struct ThinSvd {
  Matrix u;  // (m, k), k = min(m, n); empty without vectors
  Matrix s;  // (k, 1)
  Matrix v;  // (n, k)
};
ThinSvd svd_from_polar(ConstView a, ConstView q, bool vectors);

}  // namespace ccamerge
