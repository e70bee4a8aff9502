// The dynamically weighted Halley iteration for the polar factor.
#pragma once

#include <optional>

#include "matrix.hpp"

namespace ccamerge {

// The polar factor of a (m, n), finite, to some 1e-13 beyond its own condition number, which is
// the inverse of the smallest singular value. Nothing if it does not converge, which means relative
// singular values below about 1e-8.
//
// Source: Nakatsukasa, Bai & Gygi, SIAM J. Matrix Anal. Appl. 31 (2010) 2700-2720, in the Cholesky
// form of Nakatsukasa & Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349, eq. (4.3).
std::optional<Matrix> qdwh(ConstView a);

}  // namespace ccamerge
