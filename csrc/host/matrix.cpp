#include "host/matrix.hpp"

#include <algorithm>
#include <cmath>

#include "host/blas.hpp"

namespace ccamerge {
namespace {

constexpr int kTile = 32;  // of transposes, which otherwise miss the cache at every other access

// to = from^T for up to kTile rows and columns, through a buffer: a power-of-two leading dimension
// would map a whole tile's columns to the same few cache sets.
void transpose_tile(ConstView from, View to) {
  double tile[kTile][kTile];
  for (int j = 0; j < from.cols; ++j) std::copy_n(from.col(j), from.rows, tile[j]);
  for (int i = 0; i < from.rows; ++i) {
    double* column = to.col(i);
    for (int j = 0; j < from.cols; ++j) column[j] = tile[j][i];
  }
}

}  // namespace

Matrix copy_of(ConstView a) {
  Matrix out(a.rows, a.cols);
  copy(a, out.view());
  return out;
}

void copy(ConstView from, View to) {
  for (int j = 0; j < from.cols; ++j) std::copy_n(from.col(j), from.rows, to.col(j));
}

void transpose(ConstView from, View to) {
  for (int j = 0; j < from.cols; j += kTile) {
    const int cols = std::min(kTile, from.cols - j);
    for (int i = 0; i < from.rows; i += kTile) {
      const int rows = std::min(kTile, from.rows - i);
      transpose_tile(from.block(i, j, rows, cols), to.block(j, i, cols, rows));
    }
  }
}

Matrix transpose_of(ConstView a) {
  Matrix out(a.cols, a.rows);
  transpose(a, out.view());
  return out;
}

Matrix eye(int rows, int cols) {
  Matrix out(rows, cols);
  set_zero(out.view());
  for (int i = 0; i < std::min(rows, cols); ++i) out.at(i, i) = 1.0;
  return out;
}

void set_zero(View a) {
  for (int j = 0; j < a.cols; ++j) std::fill_n(a.col(j), a.rows, 0.0);
}

void mirror_lower(View a) {
  for (int j = 0; j < a.cols; j += kTile) {
    const int cols = std::min(kTile, a.cols - j);
    for (int c = j; c < j + cols; ++c) {
      for (int i = c + 1; i < j + cols; ++i) a.at(c, i) = a.at(i, c);
    }
    for (int i = j + kTile; i < a.rows; i += kTile) {
      const int rows = std::min(kTile, a.rows - i);
      transpose_tile(a.block(i, j, rows, cols), a.block(j, i, cols, rows));
    }
  }
}

double frobenius_norm(ConstView a) {
  // Scaled by the largest entry, so that neither tiny nor huge matrices lose their norm.
  double largest = 0;
  for (int j = 0; j < a.cols; ++j) {
    for (int i = 0; i < a.rows; ++i) largest = std::max(largest, std::abs(a.at(i, j)));
  }
  if (largest == 0) return 0;
  double sum = 0;
  for (int j = 0; j < a.cols; ++j) {
    for (int i = 0; i < a.rows; ++i) {
      const double x = a.at(i, j) / largest;
      sum += x * x;
    }
  }
  return largest * std::sqrt(sum);
}

void multiply(bool trans_a, ConstView a, bool trans_b, ConstView b, View c, double alpha,
              double beta) {
  const int inner = trans_a ? a.rows : a.cols;
  blas::gemm<double>(trans_a, trans_b, c.rows, c.cols, inner, alpha, a.data, a.ld, b.data, b.ld,
                     beta, c.data, c.ld);
}

}  // namespace ccamerge
