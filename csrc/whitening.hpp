// Regularised covariances: checked, factored and whitened.
#pragma once

#include <string>

#include "matrix.hpp"
#include "triangular.hpp"

namespace ccamerge {

// How a covariance s of order d is regularised: s + gamma I, where gamma is given absolutely, or
// as ridge * trace(s) / d.
struct Regulariser {
  double value = 0.0;  // >= 0, finite
  bool absolute = false;

  double gamma(double trace, int order) const { return absolute ? value : value * trace / order; }
};

// Condition numbers beyond this are refused: the solution would keep fewer than three digits.
inline constexpr double kConditionLimit = 1e13;

// The symmetric part of the contiguous s (d, d), checked. `name` says which argument of which
// problem it is, as "problems[3]: Sxx". Throws std::invalid_argument for non-finite entries or an
// asymmetry above 1e-6 of the largest entry.
Matrix checked_covariance(ConstView s, const std::string& name);

// Throws std::invalid_argument, naming the matrix, unless every entry is finite.
void check_finite(ConstView a, const std::string& name);

struct FactoredCovariance {
  Cholesky factor;   // L L^T = s + gamma I
  double condition;  // estimated, in the 1-norm
};

// Throws NumericalError naming the matrix, its condition and the regularisation that would do.
FactoredCovariance factor_covariance(ConstView s, const Regulariser& regulariser,
                                     const std::string& name);

enum class WhiteningKind { symmetric, cholesky };

struct Whitening {
  Matrix w;  // (d, d), w^T (s + gamma I) w = I
  double condition;
};

// Symmetric: (s + gamma I)^-1/2 from the eigendecomposition. Cholesky: L^-T, upper triangular.
// Throws as factor_covariance does.
Whitening whiten(ConstView s, const Regulariser& regulariser, WhiteningKind kind,
                 const std::string& name);

}  // namespace ccamerge
