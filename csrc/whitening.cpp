#include "whitening.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "blas.hpp"
#include "check.hpp"

namespace ccamerge {
namespace {

constexpr double kAsymmetry = 1e-6;  // relative; float32 second moments stay well below it

struct Sizes {
  double trace, norm1;  // of s; the 1-norm of a symmetric matrix is its infinity norm
};

Sizes sizes_of(ConstView s) {
  Sizes out{0, 0};
  for (int j = 0; j < s.cols; ++j) {
    double sum = 0;
    for (int i = 0; i < s.rows; ++i) sum += std::abs(s.at(i, j));
    out.trace += s.at(j, j);
    out.norm1 = std::max(out.norm1, sum);
  }
  return out;
}

// What to tell someone whose covariance cannot be solved with: the gamma that would bound the
// condition number by a tenth of the limit, in the units that they regularise in.
std::string cure(const Regulariser& regulariser, const Sizes& sizes, int order) {
  if (!(sizes.trace > 0)) return "every feature is constant: leave this space out, or use gamma";
  const double gamma = sizes.norm1 / (0.1 * kConditionLimit);
  const double least = regulariser.absolute ? gamma : gamma * order / sizes.trace;
  return format_message("raise ", regulariser.absolute ? "gamma" : "ridge", " to at least ",
                        std::max(least, 2 * regulariser.value));
}

[[noreturn]] void refuse(const std::string& name, const std::string& what,
                         const Regulariser& regulariser, const Sizes& sizes, int order) {
  throw NumericalError(
      format_message(name, " (order ", order, ") with ", regulariser.absolute ? "gamma" : "ridge",
                     " = ", regulariser.value, " ", what, "; ", cure(regulariser, sizes, order)));
}

// s + gamma I; refuses a gamma or sum that is not finite.
Matrix regularised(ConstView s, const Regulariser& regulariser, const Sizes& sizes,
                   const std::string& name, double* norm1) {
  const double gamma = regulariser.gamma(sizes.trace, s.rows);
  *norm1 = sizes.norm1 + std::max(0.0, gamma);
  if (!std::isfinite(*norm1)) {
    throw NumericalError(format_message(name, " overflows: its 1-norm is ", sizes.norm1,
                                        " and gamma ", gamma, "; rescale the features"));
  }
  Matrix c = copy_of(s);
  for (int i = 0; i < s.rows; ++i) c.at(i, i) += gamma;
  return c;
}

}  // namespace

void check_finite(ConstView a, const std::string& name) {
  for (int j = 0; j < a.cols; ++j) {
    double sum = 0;  // x - x is 0 for finite x, NaN otherwise: one branch a column
    for (int i = 0; i < a.rows; ++i) sum += a.at(i, j) - a.at(i, j);
    if (sum != 0 || std::isnan(sum)) {
      throw std::invalid_argument(name + " must be finite, got NaN or infinity");
    }
  }
}

Matrix checked_covariance(ConstView s, const std::string& name) {
  check_finite(s, name);
  Matrix out = transpose_of(s);
  double largest = 0, apart = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    double& x = out.data()[i];
    const double y = s.data[i];  // contiguous, as out is
    largest = std::max(largest, std::abs(y));
    apart = std::max(apart, std::abs(x - y));
    x = 0.5 * x + 0.5 * y;
  }
  if (apart > kAsymmetry * largest) {
    throw std::invalid_argument(format_message(name, " must be symmetric, got entries that differ ",
                                               "by ", apart, " across the diagonal (largest entry ",
                                               largest, ")"));
  }
  return out;
}

FactoredCovariance factor_covariance(ConstView s, const Regulariser& regulariser,
                                     const std::string& name) {
  const int n = s.rows;
  const Sizes sizes = sizes_of(s);
  double norm1 = 0;
  Cholesky factor(regularised(s, regulariser, sizes, name, &norm1));
  if (factor.info() != 0) refuse(name, "is not positive definite", regulariser, sizes, n);
  const double condition = factor.condition(norm1);
  if (!(condition <= kConditionLimit)) {
    refuse(name, format_message("has condition number ", condition, ", above ", kConditionLimit),
           regulariser, sizes, n);
  }
  return {std::move(factor), condition};
}

Whitening whiten(ConstView s, const Regulariser& regulariser, WhiteningKind kind,
                 const std::string& name) {
  const int n = s.rows;
  if (kind == WhiteningKind::cholesky) {
    const FactoredCovariance c = factor_covariance(s, regulariser, name);
    Whitening out{eye(n, n), c.condition};
    c.factor.solve_left_transposed(out.w.view());
    return out;
  }
  const Sizes sizes = sizes_of(s);
  double norm1 = 0;
  Matrix e = regularised(s, regulariser, sizes, name, &norm1);
  std::vector<double> values(static_cast<std::size_t>(n));
  if (blas::syevd(true, n, e.data(), n, values.data()) != 0) {
    throw NumericalError(name + ": the eigendecomposition did not converge");
  }
  if (!(values.front() > 0)) refuse(name, "is not positive definite", regulariser, sizes, n);
  const double condition = values.back() / values.front();
  if (!(condition <= kConditionLimit)) {
    refuse(name, format_message("has condition number ", condition, ", above ", kConditionLimit),
           regulariser, sizes, n);
  }
  // w = (E D^-1/4)(E D^-1/4)^T, symmetric to the last bit.
  Matrix half(n, n);
  for (int j = 0; j < n; ++j) {
    const double scale = std::pow(values[static_cast<std::size_t>(j)], -0.25);
    for (int i = 0; i < n; ++i) half.at(j, i) = scale * e.at(i, j);
  }
  Whitening out{Matrix(n, n), condition};
  gram_lower(1.0, half.view(), out.w.view());
  mirror_lower(out.w.view());
  return out;
}

}  // namespace ccamerge
