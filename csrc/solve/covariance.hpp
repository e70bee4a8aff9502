// Regularised covariances: checked and factored.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/check.hpp"
#include "solve/backend.hpp"
#include "solve/condition.hpp"
#include "solve/norms.hpp"
#include "solve/operands.hpp"
#include "solve/triangular.hpp"

namespace ccamerge {

// How a covariance s of order d is regularised: s + gamma I, where gamma is given absolutely, or
// as ridge * trace(s) / d.
struct Regulariser {
  double value = 0.0;  // >= 0, finite
  bool absolute = false;

  double gamma(double mean_diagonal) const { return absolute ? value : value * mean_diagonal; }
};

// Condition numbers beyond this are refused: the solution would keep fewer than three digits.
inline constexpr double kConditionLimit = 1e13;

// Below it, norms of inverses may overflow.
inline constexpr double kLeastNorm = 1e-290;

inline constexpr double kAsymmetry = 1e-6;  // relative; float32 second moments stay well below it

// What second moments of single features may be wrong by, relative to their mean squares: their
// means may be larger than their deviations.
inline constexpr double kEntryError = 1e-3;

struct CovarianceSizes {
  double mean_diagonal = 0, norm1 = 0;
  std::vector<double> diagonal;
};

// Symmetric parts, with what is known of each member.
template <Backend B>
struct Covariances {
  typename B::Matrix s;
  std::vector<CovarianceSizes> sizes;
};

// Throws std::invalid_argument if a matrix is too large for the backend's eigenvectors: before
// anything of its size is allocated.
template <Backend B>
void check_eigen_order(int order, const std::string& name) {
  if (order <= B::most_eigenvectors) return;
  throw std::invalid_argument(format_message(
      name, " has order ", order, ", but LAPACK's 32-bit workspace for eigenvectors ", "ends at ",
      B::most_eigenvectors, "; a CUDA device takes more"));
}

template <Backend B>
struct FactoredCovariances {
  Cholesky<B> cholesky;                         // L L^T = s + gamma I
  std::vector<double> conditions;               // estimated, in the 1-norm
  std::vector<std::vector<double>> deviations;  // of the features of each member, without gamma
};

// Throws std::invalid_argument, naming the member, unless every entry is finite.
template <Backend B>
void check_finite(B& b, ConstView a, const std::vector<std::string>& names) {
  const std::vector<ColumnSums> sums = b.column_sums(a);
  for (int k = 0; k < a.count; ++k) {
    if (all_finite(member_columns(sums, a.cols, k))) continue;
    throw std::invalid_argument(names[static_cast<std::size_t>(k)] +
                                " must be finite, got NaN or infinity");
  }
}

// The symmetric parts of covariances of one order. `names` say which argument of which problem each
// is, as "problems[3]: Sxx". Throws std::invalid_argument for non-finite entries or an asymmetry
// above 1e-6 of the largest entry.
template <Backend B>
Covariances<B> checked_covariances(B& b, const std::vector<ConstView>& members,
                                   const std::vector<std::string>& names) {
  Covariances<B> out{b.stack(members), {}};
  const View s = out.s.view();
  const std::vector<Symmetry> symmetry = b.symmetrise(s);
  const std::vector<ColumnSums> sums = b.column_sums(s);  // not finite where the input was not
  for (int k = 0; k < s.count; ++k) {
    const std::string& name = names[static_cast<std::size_t>(k)];
    const ColumnsOf columns = member_columns(sums, s.cols, k);
    if (!all_finite(columns)) {
      throw std::invalid_argument(name + " must be finite, got NaN or infinity");
    }
    const auto [largest, apart] = symmetry[static_cast<std::size_t>(k)];
    if (apart > kAsymmetry * largest) {
      throw std::invalid_argument(
          format_message(name, " must be symmetric, got entries that differ by ", apart,
                         " across the diagonal (largest entry ", largest, ")"));
    }
    CovarianceSizes sizes{mean_diagonal(columns), norm1(columns), {}};
    for (const ColumnSums& c : columns) sizes.diagonal.push_back(c.diagonal);
    out.sizes.push_back(std::move(sizes));
  }
  return out;
}

// One covariance of order d to be regularised.
struct CovarianceCase {
  ConstView s;
  CovarianceSizes sizes;
  Regulariser regulariser;
  std::string name;

  double gamma() const { return regulariser.gamma(sizes.mean_diagonal); }
  double norm1() const { return sizes.norm1 + std::max(0.0, gamma()); }  // once regularised

  // Of each feature, at least as large as errors that gamma allows for could make it.
  std::vector<double> deviations() const {
    const double error = kEntryError * sizes.mean_diagonal;
    const double margin = error > 0 ? std::min(gamma(), error) : gamma();
    std::vector<double> out;
    for (const double square : sizes.diagonal) {
      out.push_back(std::sqrt(std::max(0.0, square) + margin));
    }
    return out;
  }

  // What to tell someone whose covariance cannot be solved with, and the gamma that would bound the
  // condition number by a tenth of the limit, in the units that they regularise in.
  [[noreturn]] void refuse(const std::string& what) const {
    const char* const unit = regulariser.absolute ? "gamma" : "ridge";
    std::string cure = "every feature is constant: leave this space out, or use gamma";
    if (sizes.mean_diagonal > 0) {
      const double gamma = sizes.norm1 / (0.1 * kConditionLimit);
      const double least = regulariser.absolute ? gamma : gamma / sizes.mean_diagonal;
      cure =
          format_message("raise ", unit, " to at least ", std::max(least, 2 * regulariser.value));
    }
    if (sizes.norm1 > 0 && norm1() < kLeastNorm) cure = "it underflows: rescale the features";
    throw NumericalError(format_message(name, " (order ", s.rows, ") with ", unit, " = ",
                                        regulariser.value, " ", what, "; ", cure));
  }

  void check_range() const {
    if (std::isfinite(norm1())) return;
    throw NumericalError(format_message(name, " overflows: its 1-norm is ", sizes.norm1,
                                        " and gamma ", gamma(), "; rescale the features"));
  }

  void check_condition(double condition) const {
    if (condition <= kConditionLimit) return;
    refuse(format_message("has condition number ", condition, ", above ", kConditionLimit));
  }
};

// One for each member of a stack.
template <Backend B>
std::vector<CovarianceCase> cases_of(const Covariances<B>& checked, const Regulariser& regulariser,
                                     const std::vector<std::string>& names) {
  std::vector<CovarianceCase> out;
  for (std::size_t k = 0; k < names.size(); ++k) {
    out.push_back(
        {checked.s.view().member(static_cast<int>(k)), checked.sizes[k], regulariser, names[k]});
  }
  return out;
}

// The sums s + gamma I.
template <Backend B>
typename B::Matrix regularised(B& b, const std::vector<CovarianceCase>& cases) {
  std::vector<ConstView> members;
  std::vector<double> gammas;
  for (const CovarianceCase& one : cases) {
    members.push_back(one.s);
    gammas.push_back(one.gamma());
  }
  auto out = b.stack(members);
  b.combine(out.view(), 1.0, out.view(), gammas);
  return out;
}

// Throws NumericalError naming the first covariance that cannot be solved with, its condition and
// the regularisation that would do.
template <Backend B>
FactoredCovariances<B> factor_covariances(B& b, const std::vector<CovarianceCase>& cases) {
  Cholesky<B> cholesky(b, regularised(b, cases));
  // Of all, so that the first member that fails is named whatever it fails by.
  std::vector<double> conditions =
      inverse_norms(b, cholesky.factor(), static_cast<int>(cases.size()));
  for (std::size_t k = 0; k < cases.size(); ++k) {
    cases[k].check_range();
    if (cholesky.info()[k] != 0) cases[k].refuse("is not positive definite");
    conditions[k] = std::max(1.0, conditions[k] * cases[k].norm1());
    cases[k].check_condition(conditions[k]);
  }
  std::vector<std::vector<double>> deviations;
  for (const CovarianceCase& one : cases) deviations.push_back(one.deviations());
  return {std::move(cholesky), std::move(conditions), std::move(deviations)};
}

}  // namespace ccamerge
