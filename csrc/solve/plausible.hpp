// Cross moments that no data can have, given the covariances: one canonical correlation or more
// above 1. Who divides by another number of samples, or centres otherwise, gets them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/check.hpp"
#include "solve/backend.hpp"
#include "solve/covariance.hpp"
#include "solve/norms.hpp"
#include "solve/operands.hpp"
#include "solve/triangular.hpp"

namespace ccamerge {

namespace detail {

// Errors that second moments may have, relative to their mean squares: several times those of
// 16-bit features on matrix units. Whitening enlarges them by the condition numbers.
inline constexpr double kMomentError = 5e-5;

[[noreturn]] inline void refuse_cross(const std::string& name, const char* what, double value) {
  throw std::invalid_argument(format_message(
      name, " cannot be the cross moment of these two covariances: ", what, " of ", value,
      ", where 1 is the most; all three must be of the same samples, about the same means and "
      "divided by the same number"));
}

inline std::vector<double> inverses(const std::vector<double>& deviations) {
  std::vector<double> out;
  for (const double d : deviations) out.push_back(1 / std::max(d, 1e-160));  // 0: constant
  return out;
}

}  // namespace detail

// Throws std::invalid_argument, naming the member, if an entry of a cross moment s (m, n) is larger
// than the product of its two features' deviations, which are given member after member; whatever
// the conditions and gamma are.
template <Backend B>
void check_entries(B& b, ConstView s, const std::vector<double>& row_deviations,
                   const std::vector<double>& column_deviations,
                   const std::vector<std::string>& names) {
  auto scaled = copy_of(b, s);
  b.scale_columns(scaled.view(), detail::inverses(column_deviations));
  auto turned = transpose_of(b, scaled.view());
  b.scale_columns(turned.view(), detail::inverses(row_deviations));
  const std::vector<ColumnSums> sums = b.column_sums(turned.view());
  for (int k = 0; k < s.count; ++k) {
    const double largest = largest_entry(member_columns(sums, s.rows, k));
    if (largest > 1 + kEntryError) {
      detail::refuse_cross(names[static_cast<std::size_t>(k)], "two features have a correlation",
                           largest);
    }
  }
}

// The same of whitened cross moments k, whose singular values are the canonical correlations, by
// more than the conditions of both sides explain.
template <Backend B>
void check_correlations(B& b, ConstView k, const std::vector<double>& row_conditions,
                        const std::vector<double>& column_conditions,
                        const std::vector<std::string>& names) {
  typename B::Matrix turned;
  if (k.rows < k.cols) {
    turned = transpose_of(b, k);
    k = turned.view();
  }
  auto gram = b.matrix(k.cols, k.cols, k.count);
  b.gram_lower(1.0, k, gram.view());
  std::vector<double> most;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const double bound =
        1 + detail::kMomentError * std::max(row_conditions[i], column_conditions[i]);
    most.push_back(bound * bound);
  }
  // Positive definite exactly where no singular value reaches the bound.
  b.combine(gram.view(), -1.0, gram.view(), most, Part::lower);
  const Cholesky<B> room(b, std::move(gram));
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (room.info()[i] == 0) continue;
    auto one = b.matrix(k.cols, k.cols), values = b.matrix(k.cols, 1);
    b.gram_lower(1.0, k.member(static_cast<int>(i)), one.view());
    b.eigh(false, one.view(), values.view());
    const double largest = std::sqrt(downloaded(b, values.view()).back());
    detail::refuse_cross(names[i], "they have a canonical correlation", largest);
  }
}

}  // namespace ccamerge
