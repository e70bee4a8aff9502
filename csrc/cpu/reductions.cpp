// The CPU backend's reductions.
#include <algorithm>
#include <cmath>

#include "cpu/backend.hpp"

namespace ccamerge {
namespace {

// Several sums at once, so that additions need not wait for each other.
constexpr int kLanes = 8;

struct Sums {
  double absolute[kLanes] = {}, squares[kLanes] = {}, largest[kLanes] = {};

  void add(const double* x, int n) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) add(l, x[i + l]);
    }
    for (int l = 0; i < n; ++i, ++l) add(l, x[i]);
  }

  void add(int lane, double x) {
    const double size = std::abs(x);
    absolute[lane] += size;
    squares[lane] += size * size;
    largest[lane] = size > largest[lane] ? size : largest[lane];
  }

  ColumnSums total(double diagonal) const {
    ColumnSums out{std::abs(diagonal), 0, diagonal, 0};
    if (out.absolute > 0) out.largest = out.absolute;  // not for NaN
    for (int l = 0; l < kLanes; ++l) {
      out.absolute += absolute[l];
      out.off_squares += squares[l];
      out.largest = std::max(out.largest, largest[l]);
    }
    return out;
  }
};

void full_sums(ConstView a, ColumnSums* out) {
  for (int j = 0; j < a.cols; ++j) {
    const double* const column = a.col(j);
    Sums sums;
    sums.add(column, std::min(j, a.rows));
    if (j < a.rows) sums.add(column + j + 1, a.rows - j - 1);
    out[j] = sums.total(j < a.rows ? column[j] : 0.0);
  }
}

// Each entry below the diagonal counts for its column and, above the diagonal, for its row.
void lower_sums(ConstView a, ColumnSums* out) {
  const int n = a.cols;
  std::vector<double> rows(3 * static_cast<std::size_t>(n), 0.0);
  double *const absolute = rows.data(), *const squares = absolute + n, *const largest = squares + n;
  for (int j = 0; j < n; ++j) {
    const double* const column = a.col(j);
    Sums sums;
    sums.add(column + j + 1, n - j - 1);
    out[j] = sums.total(column[j]);
    out[j].absolute += absolute[j];
    out[j].off_squares += squares[j];
    out[j].largest = std::max(out[j].largest, largest[j]);
#pragma GCC ivdep
    for (int i = j + 1; i < n; ++i) {
      const double size = std::abs(column[i]);
      absolute[i] += size;
      squares[i] += size * size;
      largest[i] = size > largest[i] ? size : largest[i];
    }
  }
}

double inner_member(ConstView a, ConstView b) {
  double sum = 0;
  for (int j = 0; j < a.cols; ++j) {
    double column = 0;
    for (int i = 0; i < a.rows; ++i) column += a.at(i, j) * b.at(i, j);
    sum += column;
  }
  return sum;
}

constexpr int kTile = 32;

void symmetrise_pair(double& x, double& y, Symmetry& seen) {
  seen.largest = std::max({seen.largest, std::abs(x), std::abs(y)});
  seen.apart = std::max(seen.apart, std::abs(x - y));
  x = y = 0.5 * x + 0.5 * y;
}

// `below` and, across the diagonal, `above`: through a buffer, since a power-of-two leading
// dimension would map a whole tile's columns to the same few cache sets.
void symmetrise_tiles(View below, View above, Symmetry& seen) {
  double tile[kTile][kTile];
  for (int i = 0; i < above.cols; ++i) {
    for (int j = 0; j < above.rows; ++j) tile[j][i] = above.at(j, i);
  }
  for (int j = 0; j < below.cols; ++j) {
    for (int i = 0; i < below.rows; ++i) symmetrise_pair(below.at(i, j), tile[j][i], seen);
  }
  for (int i = 0; i < above.cols; ++i) {
    for (int j = 0; j < above.rows; ++j) above.at(j, i) = tile[j][i];
  }
}

Symmetry symmetrise_member(View a) {
  Symmetry seen;
  const int n = a.cols;
  for (int left = 0; left < n; left += kTile) {
    const int cols = std::min(kTile, n - left);
    for (int j = left; j < left + cols; ++j) {
      for (int i = j; i < left + cols; ++i) symmetrise_pair(a.at(i, j), a.at(j, i), seen);
    }
    for (int top = left + kTile; top < n; top += kTile) {
      const int rows = std::min(kTile, n - top);
      symmetrise_tiles(a.block(top, left, rows, cols), a.block(left, top, cols, rows), seen);
    }
  }
  return seen;
}

}  // namespace

std::vector<ColumnSums> Cpu::column_sums(ConstView a, Part part) {
  const auto cols = static_cast<std::size_t>(a.cols);
  std::vector<ColumnSums> out(cols * static_cast<std::size_t>(a.count));
  for (int k = 0; k < a.count; ++k) {
    ColumnSums* const to = out.data() + cols * static_cast<std::size_t>(k);
    part == Part::lower ? lower_sums(a.member(k), to) : full_sums(a.member(k), to);
  }
  return out;
}

std::vector<double> Cpu::inner(ConstView a, ConstView b) {
  std::vector<double> out;
  for (int k = 0; k < a.count; ++k) out.push_back(inner_member(a.member(k), b.member(k)));
  return out;
}

std::vector<Symmetry> Cpu::symmetrise(View a) {
  std::vector<Symmetry> out;
  for (int k = 0; k < a.count; ++k) out.push_back(symmetrise_member(a.member(k)));
  return out;
}

}  // namespace ccamerge
