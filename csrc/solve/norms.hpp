// What follows from a matrix's column sums: norms, bounds, traces, what is dead or not finite.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "solve/backend.hpp"
#include "solve/operands.hpp"

namespace ccamerge {

using ColumnsOf = std::span<const ColumnSums>;  // one member's

inline ColumnsOf member_columns(const std::vector<ColumnSums>& sums, int cols, int member) {
  const auto n = static_cast<std::size_t>(cols);
  return ColumnsOf(sums).subspan(n * static_cast<std::size_t>(member), n);
}

inline bool all_finite(ColumnsOf columns) {
  return std::all_of(columns.begin(), columns.end(), [](const ColumnSums& c) {
    return !std::isnan(c.absolute) && std::isfinite(c.largest);
  });
}

// Indices of the columns with any entry that is not zero.
inline std::vector<int> alive(ColumnsOf columns) {
  std::vector<int> out;
  for (std::size_t j = 0; j < columns.size(); ++j) {
    if (columns[j].largest != 0) out.push_back(static_cast<int>(j));
  }
  return out;
}

// The mean of the diagonal, whose sum may overflow.
inline double mean_diagonal(ColumnsOf columns) {
  double mean = 0;
  for (const ColumnSums& c : columns) mean += c.diagonal / static_cast<double>(columns.size());
  return mean;
}

inline double norm1(ColumnsOf columns) {
  double largest = 0;
  for (const ColumnSums& c : columns) largest = std::max(largest, c.absolute);
  return largest;
}

inline double largest_entry(ColumnsOf columns) {
  double largest = 0;
  for (const ColumnSums& c : columns) largest = std::max(largest, c.largest);
  return largest;
}

// ||g||_F, where squares neither overflow nor vanish.
inline double plain_norm(ColumnsOf columns) {
  double diagonal = 0, rest = 0;
  for (const ColumnSums& c : columns) {
    diagonal += c.diagonal * c.diagonal;
    rest += c.off_squares;
  }
  return std::sqrt(diagonal + rest);
}

// ||I - g||_F
inline double departure(ColumnsOf columns) {
  double diagonal = 0, rest = 0;
  for (const ColumnSums& c : columns) {
    diagonal += (1 - c.diagonal) * (1 - c.diagonal);
    rest += c.off_squares;
  }
  return std::sqrt(diagonal + rest);
}

// An upper bound on the largest eigenvalue of a symmetric g: the smaller of its Frobenius and
// 1-norms.
inline double spectral_bound(ColumnsOf columns) {
  return std::min(plain_norm(columns), norm1(columns));
}

// One number for each member of a stack, from its column sums.
template <Backend B, class F>
std::vector<double> of_members(B& b, ConstView a, Part part, F&& f) {
  const std::vector<ColumnSums> sums = b.column_sums(a, part);
  std::vector<double> out;
  for (int k = 0; k < a.count; ++k) out.push_back(f(member_columns(sums, a.cols, k)));
  return out;
}

// Frobenius norms, scaled where their squares could overflow or vanish. (Where the inverse of the
// largest entry overflows, a bound.)
template <Backend B>
std::vector<double> frobenius_norms(B& b, ConstView a, const std::vector<ColumnSums>& sums) {
  constexpr double kLeast = 1e-140, kMost = 1e140;
  std::vector<double> out;
  for (int k = 0; k < a.count; ++k) {
    const ColumnsOf columns = member_columns(sums, a.cols, k);
    const double largest = largest_entry(columns);
    if (largest == 0 || (largest >= kLeast && largest <= kMost)) {
      out.push_back(plain_norm(columns));
    } else if (std::isinf(1 / largest)) {
      out.push_back(largest * std::sqrt(static_cast<double>(a.rows) * a.cols));
    } else {
      auto scaled = b.matrix(a.rows, a.cols);
      b.combine(scaled.view(), 1 / largest, a.member(k));
      const std::vector<ColumnSums> again = b.column_sums(scaled.view());
      out.push_back(largest * plain_norm(again));
    }
  }
  return out;
}

template <Backend B>
std::vector<double> frobenius_norms(B& b, ConstView a) {
  return frobenius_norms(b, a, b.column_sums(a));
}

}  // namespace ccamerge
