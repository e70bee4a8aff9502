// The CPU backend's primitives on single entries, rows and columns.
#include <algorithm>
#include <cmath>

#include "cpu/solve/backend.hpp"

namespace ccamerge {
namespace {

// c = x a + y b on n entries. Operands that are the same give no dependence between entries, which
// the compiler cannot see.
void combine_column(double* c, double x, const double* a, double y, const double* b, int n) {
  if (x == 0 && y == 0) {
    std::fill_n(c, n, 0.0);
  } else if (y == 0 && x == 1) {
    if (c != a) std::copy_n(a, n, c);
  } else if (y == 0) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) c[i] = x * a[i];
  } else if (x == 0) {
    combine_column(c, y, b, 0, a, n);
  } else {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) c[i] = x * a[i] + y * b[i];
  }
}

void combine_member(View c, double x, ConstView a, double y, ConstView b, double diagonal,
                    Part part) {
  const bool in_place = x == 1 && y == 0 && c.data == a.data;
  for (int j = 0; !in_place && j < c.cols; ++j) {
    const int from = part == Part::lower ? j : 0;
    combine_column(c.col(j) + from, x, x == 0 ? nullptr : a.col(j) + from, y,
                   y == 0 ? nullptr : b.col(j) + from, c.rows - from);
  }
  if (diagonal == 0) return;
  for (int j = 0; j < std::min(c.rows, c.cols); ++j) c.at(j, j) += diagonal;
}

void fix_sign(double* v, int n) {
  int largest = 0;
  for (int i = 1; i < n; ++i) {
    if (std::abs(v[i]) > std::abs(v[largest])) largest = i;
  }
  if (n > 0 && v[largest] < 0) {
    for (int i = 0; i < n; ++i) v[i] = -v[i];
  }
}

}  // namespace

void Cpu::combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& beta,
                  ConstView b, const Coefficients& diagonal, Part part) {
  for (int k = 0; k < c.count; ++k) {
    combine_member(c.member(k), alpha[k], a.member(k), beta[k], b.member(k), diagonal[k], part);
  }
}

void Cpu::transpose(ConstView from, View to) {
  for (int k = 0; k < to.count; ++k) ccamerge::transpose(from.member(k), to.member(k));
}

void Cpu::mirror_lower(View a) {
  for (int k = 0; k < a.count; ++k) ccamerge::mirror_lower(a.member(k));
}

void Cpu::reverse_columns(ConstView from, View to) {
  for (int k = 0; k < to.count; ++k) {
    for (int j = 0; j < to.cols; ++j) {
      std::copy_n(from.member(k).col(from.cols - 1 - j), from.rows, to.member(k).col(j));
    }
  }
}

void Cpu::scale_columns(View a, const std::vector<double>& factors) {
  std::size_t next = 0;
  for (int k = 0; k < a.count; ++k) {
    for (int j = 0; j < a.cols; ++j) {
      double* const column = a.member(k).col(j);
      const double factor = factors[next++];
      for (int i = 0; i < a.rows; ++i) column[i] *= factor;
    }
  }
}

void Cpu::fix_signs(View a) {
  for (int k = 0; k < a.count; ++k) {
    for (int j = 0; j < a.cols; ++j) fix_sign(a.member(k).col(j), a.rows);
  }
}

void Cpu::gather(ConstView from, const std::vector<int>& rows, const std::vector<int>& cols,
                 View to) {
  for (int j = 0; j < to.cols; ++j) {
    const double* const column = from.col(cols[static_cast<std::size_t>(j)]);
    for (int i = 0; i < to.rows; ++i) to.at(i, j) = column[rows[static_cast<std::size_t>(i)]];
  }
}

void Cpu::scatter(ConstView from, const std::vector<int>& rows, const std::vector<int>& cols,
                  View to) {
  for (int j = 0; j < from.cols; ++j) {
    double* const column = to.col(cols[static_cast<std::size_t>(j)]);
    for (int i = 0; i < from.rows; ++i) column[rows[static_cast<std::size_t>(i)]] = from.at(i, j);
  }
}

}  // namespace ccamerge
