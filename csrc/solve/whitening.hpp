// Whitened regularised covariances.
#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "common/check.hpp"
#include "solve/backend.hpp"
#include "solve/covariance.hpp"
#include "solve/operands.hpp"

namespace ccamerge {

enum class WhiteningKind { symmetric, cholesky };

template <Backend B>
struct Whitening {
  typename B::Matrix w;  // (d, d), w^T (s + gamma I) w = I
  std::vector<double> conditions;
};

// Symmetric: (s + gamma I)^-1/2 from the eigendecomposition. Cholesky: L^-T, upper triangular.
// Throws as checked_covariances and factor_covariances do.
template <Backend B>
Whitening<B> whiten(B& b, const std::vector<ConstView>& covariances, const Regulariser& regulariser,
                    WhiteningKind kind, const std::vector<std::string>& names) {
  const int n = covariances.front().rows, count = static_cast<int>(covariances.size());
  if (kind == WhiteningKind::symmetric) check_eigen_order<B>(n, names.front());
  const Covariances<B> checked = checked_covariances(b, covariances, names);
  const std::vector<CovarianceCase> cases = cases_of(checked, regulariser, names);
  if (kind == WhiteningKind::cholesky) {
    FactoredCovariances<B> c = factor_covariances(b, cases);
    Whitening<B> out{eye(b, n, n, count), std::move(c.conditions)};
    c.cholesky.factor().solve_left_transposed(out.w.view());
    return out;
  }
  for (const CovarianceCase& one : cases) one.check_range();
  auto e = regularised(b, cases), w = b.matrix(n, 1, count);
  const std::vector<int> info = b.eigh(true, e.view(), w.view());
  const std::vector<double> values = downloaded(b, w.view());
  Whitening<B> out;
  for (std::size_t k = 0; k < cases.size(); ++k) {
    if (info[k] != 0) {
      throw NumericalError(names[k] + ": the eigendecomposition did not converge");
    }
    const double least = values[k * static_cast<std::size_t>(n)];
    if (!(least > 0)) cases[k].refuse("is not positive definite");
    out.conditions.push_back(values[(k + 1) * static_cast<std::size_t>(n) - 1] / least);
    cases[k].check_condition(out.conditions.back());
  }
  // w = (E D^-1/4)(E D^-1/4)^T, symmetric to the last bit.
  std::vector<double> scales;
  for (const double value : values) scales.push_back(std::pow(value, -0.25));
  b.scale_columns(e.view(), scales);
  const auto half = transpose_of(b, e.view());
  out.w = b.matrix(n, n, count);
  b.gram_lower(1.0, half.view(), out.w.view());
  b.mirror_lower(out.w.view());
  return out;
}

}  // namespace ccamerge
