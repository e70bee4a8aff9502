// The CPU backend's reductions.
#include <algorithm>
#include <cmath>

#include "cpu/solve/backend.hpp"

namespace ccamerge {
namespace {

// Several sums at once, so that additions need not wait for each other.
constexpr int kLanes = 4;

// Of one column, and of what its entries are to other columns: whatever `across` adds up to.
struct Sums {
  double absolute[kLanes] = {}, squares[kLanes] = {}, largest[kLanes] = {};

  template <class Across>
  void add(const double* x, int n, const Across& across) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      double size[kLanes];
      for (int l = 0; l < kLanes; ++l) size[l] = std::abs(x[i + l]);
      for (int l = 0; l < kLanes; ++l) absolute[l] += size[l];
      for (int l = 0; l < kLanes; ++l) squares[l] += size[l] * size[l];
      for (int l = 0; l < kLanes; ++l) largest[l] = size[l] > largest[l] ? size[l] : largest[l];
      for (int l = 0; l < kLanes; ++l) across(i + l, size[l]);
    }
    for (; i < n; ++i) {  // one lane throughout: an index would keep all lanes out of registers
      const double size = std::abs(x[i]);
      absolute[0] += size;
      squares[0] += size * size;
      largest[0] = size > largest[0] ? size : largest[0];
      across(i, size);
    }
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
  const auto nothing = [](int, double) {};
  for (int j = 0; j < a.cols; ++j) {
    const double* const column = a.col(j);
    Sums sums;
    sums.add(column, std::min(j, a.rows), nothing);
    if (j < a.rows) sums.add(column + j + 1, a.rows - j - 1, nothing);
    out[j] = sums.total(j < a.rows ? column[j] : 0.0);
  }
}

// Each entry below the diagonal counts for its column and, above the diagonal, for its row.
void lower_sums(ConstView a, ColumnSums* out) {
  const int n = a.cols;
  std::vector<double> rows(3 * static_cast<std::size_t>(n), 0.0);
  for (int j = 0; j < n; ++j) {
    const double* const column = a.col(j);
    double* const absolute = rows.data() + j + 1;  // of the rows below
    double *const squares = absolute + n, *const largest = squares + n;
    Sums sums;
    sums.add(column + j + 1, n - j - 1, [=](int i, double size) {
      absolute[i] += size;
      squares[i] += size * size;
      largest[i] = size > largest[i] ? size : largest[i];
    });
    out[j] = sums.total(column[j]);
    out[j].absolute += absolute[-1];
    out[j].off_squares += squares[-1];
    out[j].largest = std::max(out[j].largest, largest[-1]);
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

// Entries i of a column and, across the diagonal, of y; what was seen of them goes to lane i.
struct Seen {
  double largest[kTile] = {}, apart[kTile] = {};

  void symmetrise(double* __restrict x, double* __restrict y, int n) {
    for (int i = 0; i < n; ++i) {
      const double a = std::abs(x[i]), b = std::abs(y[i]), difference = std::abs(x[i] - y[i]);
      const double size = a > b ? a : b;
      largest[i] = size > largest[i] ? size : largest[i];
      apart[i] = difference > apart[i] ? difference : apart[i];
      x[i] = y[i] = 0.5 * x[i] + 0.5 * y[i];
    }
  }
};

// `below` and, across the diagonal, `above`: through a buffer, since a power-of-two leading
// dimension would map a whole tile's columns to the same few cache sets.
void symmetrise_tiles(View below, View above, Seen& seen) {
  double tile[kTile][kTile];
  for (int i = 0; i < above.cols; ++i) {
    for (int j = 0; j < above.rows; ++j) tile[j][i] = above.at(j, i);
  }
  for (int j = 0; j < below.cols; ++j) seen.symmetrise(below.col(j), tile[j], below.rows);
  for (int i = 0; i < above.cols; ++i) {
    for (int j = 0; j < above.rows; ++j) above.at(j, i) = tile[j][i];
  }
}

Symmetry symmetrise_member(View a) {
  Seen seen;
  const int n = a.cols;
  for (int left = 0; left < n; left += kTile) {
    const int cols = std::min(kTile, n - left);
    double tile[kTile][kTile];  // the diagonal tile's transpose
    for (int j = 0; j < cols; ++j) {
      for (int i = 0; i < cols; ++i) tile[i][j] = a.at(left + i, left + j);
    }
    for (int j = 0; j < cols; ++j) seen.symmetrise(a.col(left + j) + left, tile[j], cols);
    for (int top = left + kTile; top < n; top += kTile) {
      const int rows = std::min(kTile, n - top);
      symmetrise_tiles(a.block(top, left, rows, cols), a.block(left, top, cols, rows), seen);
    }
  }
  return {*std::max_element(seen.largest, seen.largest + kTile),
          *std::max_element(seen.apart, seen.apart + kTile)};
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
