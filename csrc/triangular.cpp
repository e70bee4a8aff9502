#include "triangular.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "blas.hpp"

namespace ccamerge {
namespace {

constexpr int kBlock = 32;  // order of the diagonal blocks that are inverted
constexpr int kLeaf = 16;   // below this, plain loops beat BLAS calls

// Where recursion splits [0, n): a multiple of the block, so that leaves are diagonal blocks.
int split(int n) { return (n / 2 + kBlock - 1) / kBlock * kBlock; }

// Scratch that a leaf product copies its operand into; one for each call of the recursion's root.
View scratch_for(Matrix& scratch, ConstView b) { return {scratch.data(), b.rows, b.cols, b.rows}; }

void copy(ConstView from, View to) {
  for (int j = 0; j < from.cols; ++j) std::copy_n(from.col(j), from.rows, to.col(j));
}

// The operations on b by a lower triangular l with the inverses of its diagonal blocks. Each
// splits l at h: the halves are handled in the order that the data flow dictates.
struct Recursion {
  ConstView l;
  ConstView inverse;  // (kBlock, n)
  Matrix scratch;

  Recursion(ConstView l_in, ConstView inverse_in, ConstView b, bool left)
      : l(l_in),
        inverse(inverse_in),
        scratch(left ? std::min(kBlock, b.rows) : b.rows,
                left ? b.cols : std::min(kBlock, b.cols)) {}

  ConstView inverse_block(int at, int n) const { return inverse.block(0, at, n, n); }

  void leaf_left(bool trans, ConstView factor, View b) {
    const View t = scratch_for(scratch, b);
    copy(b, t);
    multiply(trans, factor, false, t, b);
  }

  void leaf_right(bool trans, ConstView factor, View b) {
    const View t = scratch_for(scratch, b);
    copy(b, t);
    multiply(false, t, trans, factor, b);
  }

  void solve_left(bool trans, int at, int n, View b) {
    if (n <= kBlock) return leaf_left(trans, inverse_block(at, n), b);
    const int h = split(n);
    const ConstView l21 = l.block(at + h, at, n - h, h);
    const View top = b.block(0, 0, h, b.cols), bottom = b.block(h, 0, n - h, b.cols);
    if (trans) {
      solve_left(trans, at + h, n - h, bottom);
      multiply(true, l21, false, bottom, top, -1.0, 1.0);
      solve_left(trans, at, h, top);
    } else {
      solve_left(trans, at, h, top);
      multiply(false, l21, false, top, bottom, -1.0, 1.0);
      solve_left(trans, at + h, n - h, bottom);
    }
  }

  void solve_right(bool trans, int at, int n, View b) {
    if (n <= kBlock) return leaf_right(trans, inverse_block(at, n), b);
    const int h = split(n);
    const ConstView l21 = l.block(at + h, at, n - h, h);
    const View left = b.block(0, 0, b.rows, h), right = b.block(0, h, b.rows, n - h);
    if (trans) {
      solve_right(trans, at, h, left);
      multiply(false, left, true, l21, right, -1.0, 1.0);
      solve_right(trans, at + h, n - h, right);
    } else {
      solve_right(trans, at + h, n - h, right);
      multiply(false, right, false, l21, left, -1.0, 1.0);
      solve_right(trans, at, h, left);
    }
  }

  void multiply_left(int at, int n, View b) {
    if (n <= kBlock) return leaf_left(false, l.block(at, at, n, n), b);
    const int h = split(n);
    const View top = b.block(0, 0, h, b.cols), bottom = b.block(h, 0, n - h, b.cols);
    multiply_left(at + h, n - h, bottom);
    multiply(false, l.block(at + h, at, n - h, h), false, top, bottom, 1.0, 1.0);
    multiply_left(at, h, top);
  }
};

// Cholesky factor of the small a (lower triangle in, full square with zeros above out) and the
// inverse x of the factor. Returns LAPACK's info. Row by row, so that inner products stay in
// registers; n <= kLeaf.
int factor_unblocked(View a, View x) {
  const int n = a.rows;
  double l[kLeaf][kLeaf] = {}, inverse[kLeaf][kLeaf] = {};
  for (int j = 0; j < n; ++j) {
    for (int i = j; i < n; ++i) l[j][i] = a.at(i, j);
  }
  for (int j = 0; j < n; ++j) {
    const double pivot = l[j][j];
    if (!(pivot > 0)) return j + 1;
    const double root = std::sqrt(pivot), scale = 1 / root;
    l[j][j] = root;
    for (int i = j + 1; i < n; ++i) l[j][i] *= scale;
    for (int k = j + 1; k < n; ++k) {
      for (int i = 0; i < kLeaf; ++i) l[k][i] -= l[j][k] * l[j][i];  // fixed length: unrolled
    }
    // Column j of the inverse's transpose: forward substitution, all right sides at once.
    inverse[j][j] = 1;
    for (int k = 0; k < j; ++k) {
      for (int i = 0; i < kLeaf; ++i) inverse[j][i] -= l[k][j] * inverse[k][i];
    }
    for (int i = 0; i < kLeaf; ++i) inverse[j][i] *= scale;
  }
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < n; ++i) {
      a.at(i, j) = i < j ? 0.0 : l[j][i];
      x.at(i, j) = i < j ? 0.0 : inverse[i][j];
    }
  }
  return 0;
}

// As factor_unblocked for n <= kBlock, by halves.
int factor_block(View a, View x) {
  const int n = a.rows;
  if (n <= kLeaf) return factor_unblocked(a, x);
  const int h = (n / 2 + kLeaf - 1) / kLeaf * kLeaf, rest = n - h;
  const View a11 = a.block(0, 0, h, h), a21 = a.block(h, 0, rest, h),
             a22 = a.block(h, h, rest, rest);
  const View x11 = x.block(0, 0, h, h), x21 = x.block(h, 0, rest, h),
             x22 = x.block(h, h, rest, rest);
  int info = factor_block(a11, x11);
  if (info != 0) return info;
  double scratch[kBlock * kBlock / 4];
  const View t{scratch, rest, h, rest};
  copy(a21, t);
  multiply(false, t, true, x11, a21);  // L21 = A21 L11^-T
  multiply(false, a21, true, a21, a22, -1.0, 1.0);
  info = factor_block(a22, x22);
  if (info != 0) return info + h;
  multiply(false, a21, false, x11, t);  // the inverse's corner: -L22^-1 L21 L11^-1
  multiply(false, x22, false, t, x21, -1.0);
  set_zero(a.block(0, h, h, rest));
  set_zero(x.block(0, h, h, rest));
  return 0;
}

// Factors the n rows and columns from `at` on; returns LAPACK's info, counted from `at`.
int factor(View l, View inverse, int at, int n) {
  const View a = l.block(at, at, n, n);
  if (n <= kBlock) return factor_block(a, inverse.block(0, at, n, n));
  const int h = split(n);
  int info = factor(l, inverse, at, h);
  if (info != 0) return info;
  const View l21 = a.block(h, 0, n - h, h);
  Recursion(l, inverse, l21, false).solve_right(true, at, h, l21);
  const View a22 = a.block(h, h, n - h, n - h);
  blas::syrk<double>(false, n - h, h, -1.0, l21.data, l21.ld, 1.0, a22.data, a22.ld);
  info = factor(l, inverse, at + h, n - h);
  return info == 0 ? 0 : info + h;
}

}  // namespace

void gram_lower(double alpha, ConstView a, View c) {
  blas::syrk<double>(true, a.cols, a.rows, alpha, a.data, a.ld, 0.0, c.data, c.ld);
}

Cholesky::Cholesky(Matrix a)
    : l_(std::move(a)), inverse_blocks_(std::min(kBlock, l_.rows()), l_.rows()) {
  info_ = factor(l_.view(), inverse_blocks_.view(), 0, l_.rows());
}

double Cholesky::condition(double norm1) const {
  double reciprocal = 0;
  blas::pocon(order(), l_.data(), std::max(1, order()), norm1, &reciprocal);
  return 1 / reciprocal;
}

void Cholesky::solve_left(View b) const {
  Recursion(l_.view(), inverse_blocks_.view(), b, true).solve_left(false, 0, order(), b);
}

void Cholesky::solve_left_transposed(View b) const {
  Recursion(l_.view(), inverse_blocks_.view(), b, true).solve_left(true, 0, order(), b);
}

void Cholesky::solve_right(View b) const {
  Recursion(l_.view(), inverse_blocks_.view(), b, false).solve_right(false, 0, order(), b);
}

void Cholesky::solve_right_transposed(View b) const {
  Recursion(l_.view(), inverse_blocks_.view(), b, false).solve_right(true, 0, order(), b);
}

void Cholesky::multiply_left(View b) const {
  Recursion(l_.view(), inverse_blocks_.view(), b, true).multiply_left(0, order(), b);
}

}  // namespace ccamerge
