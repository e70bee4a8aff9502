// Cholesky factors and triangular products built by recursion on matrix products: on the CPU,
// OpenBLAS's own trsm runs at a third of its gemm's rate at the orders that matter here (64 to
// 1024), and products are what a device does best.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "solve/backend.hpp"

namespace ccamerge {

// A lower triangular factor l (n, n), not owned, with what makes solving with it fast: the inverse
// of the diagonal block that starts at column k in columns k... of inverse (B::block, n). Only the
// diagonal blocks of l have a strict upper triangle, of zeros.
template <Backend B>
class Triangular {
 public:
  Triangular(B& b, ConstView l, ConstView inverse) : b_(&b), l_(l), inverse_(inverse) {}

  int order() const { return l_.rows; }
  ConstView lower() const { return l_; }
  ConstView inverse() const { return inverse_; }
  Triangular member(int k) const { return {*b_, l_.member(k), inverse_.member(k)}; }

  void solve_left(View x) const;              // x = L^-1 x
  void solve_left_transposed(View x) const;   // x = L^-T x
  void solve_right(View x) const;             // x = x L^-1
  void solve_right_transposed(View x) const;  // x = x L^-T
  void multiply_left(View x) const;           // x = L x

 private:
  B* b_;
  ConstView l_, inverse_;
};

// Lower factors L of symmetric positive definite matrices, L L^T = a.
template <Backend B>
class Cholesky {
 public:
  // Reads the lower triangles of a (n, n).
  Cholesky(B& b, typename B::Matrix a);

  // Of each member: 0, or the order of the first leading minor that is not positive definite; then
  // that member's factor is undefined.
  const std::vector<int>& info() const { return info_; }
  Triangular<B> factor() const { return {*b_, l_.view(), inverse_.view()}; }

 private:
  B* b_;
  typename B::Matrix l_, inverse_;
  std::vector<int> info_;
};

namespace detail {

// Where recursion splits [0, n): a multiple of the block, so that leaves are diagonal blocks.
inline int split_order(int n, int block) { return (n / 2 + block - 1) / block * block; }

// The operations on x. Each splits l at h: the halves are handled in the order that the data flow
// dictates.
template <Backend B>
struct TriangularRecursion {
  B& b;
  ConstView l, inverse;
  typename B::Matrix scratch;  // what a leaf's product copies its operand into

  TriangularRecursion(B& backend, ConstView l_in, ConstView inverse_in, ConstView x, bool left)
      : b(backend),
        l(l_in),
        inverse(inverse_in),
        scratch(left ? b.matrix(std::min(int{B::block}, x.rows), x.cols, x.count)
                     : b.matrix(x.rows, std::min(int{B::block}, x.cols), x.count)) {}

  ConstView inverse_block(int at, int n) const { return inverse.block(0, at, n, n); }

  void leaf_left(bool trans, ConstView factor, View x) {
    const View t = scratch.view().block(0, 0, x.rows, x.cols);
    b.combine(t, 1.0, x);
    b.multiply(trans, factor, false, t, x);
  }

  void leaf_right(bool trans, ConstView factor, View x) {
    const View t = scratch.view().block(0, 0, x.rows, x.cols);
    b.combine(t, 1.0, x);
    b.multiply(false, t, trans, factor, x);
  }

  void solve_left(bool trans, int at, int n, View x) {
    if (n <= B::block) return leaf_left(trans, inverse_block(at, n), x);
    const int h = split_order(n, B::block);
    const ConstView l21 = l.block(at + h, at, n - h, h);
    const View top = x.block(0, 0, h, x.cols), bottom = x.block(h, 0, n - h, x.cols);
    if (trans) {
      solve_left(trans, at + h, n - h, bottom);
      b.multiply(true, l21, false, bottom, top, -1.0, 1.0);
      solve_left(trans, at, h, top);
    } else {
      solve_left(trans, at, h, top);
      b.multiply(false, l21, false, top, bottom, -1.0, 1.0);
      solve_left(trans, at + h, n - h, bottom);
    }
  }

  void solve_right(bool trans, int at, int n, View x) {
    if (n <= B::block) return leaf_right(trans, inverse_block(at, n), x);
    const int h = split_order(n, B::block);
    const ConstView l21 = l.block(at + h, at, n - h, h);
    const View left = x.block(0, 0, x.rows, h), right = x.block(0, h, x.rows, n - h);
    if (trans) {
      solve_right(trans, at, h, left);
      b.multiply(false, left, true, l21, right, -1.0, 1.0);
      solve_right(trans, at + h, n - h, right);
    } else {
      solve_right(trans, at + h, n - h, right);
      b.multiply(false, right, false, l21, left, -1.0, 1.0);
      solve_right(trans, at, h, left);
    }
  }

  void multiply_left(int at, int n, View x) {
    if (n <= B::block) return leaf_left(false, l.block(at, at, n, n), x);
    const int h = split_order(n, B::block);
    const View top = x.block(0, 0, h, x.cols), bottom = x.block(h, 0, n - h, x.cols);
    multiply_left(at + h, n - h, bottom);
    b.multiply(false, l.block(at + h, at, n - h, h), false, top, bottom, 1.0, 1.0);
    multiply_left(at, h, top);
  }
};

// Factors the n rows and columns from `at` on.
template <Backend B>
void cholesky(B& b, View l, View inverse, int at, int n, typename B::Info& info) {
  const View a = l.block(at, at, n, n);
  if (n <= B::block) return b.factor_block(a, inverse.block(0, at, n, n), at, info);
  const int h = split_order(n, B::block);
  cholesky(b, l, inverse, at, h, info);
  if (b.failed_all(info)) return;
  const View l21 = a.block(h, 0, n - h, h);
  TriangularRecursion<B>(b, l, inverse, l21, false).solve_right(true, at, h, l21);
  b.downdate_lower(l21, a.block(h, h, n - h, n - h));
  cholesky(b, l, inverse, at + h, n - h, info);
}

}  // namespace detail

template <Backend B>
Cholesky<B>::Cholesky(B& b, typename B::Matrix a)
    : b_(&b),
      l_(std::move(a)),
      inverse_(b.matrix(std::min(int{B::block}, l_.rows()), l_.rows(), l_.count())) {
  typename B::Info info = b.info(l_.count());
  detail::cholesky(b, l_.view(), inverse_.view(), 0, l_.rows(), info);
  info_ = b.read(info);
}

template <Backend B>
void Triangular<B>::solve_left(View x) const {
  detail::TriangularRecursion<B>(*b_, l_, inverse_, x, true).solve_left(false, 0, order(), x);
}

template <Backend B>
void Triangular<B>::solve_left_transposed(View x) const {
  detail::TriangularRecursion<B>(*b_, l_, inverse_, x, true).solve_left(true, 0, order(), x);
}

template <Backend B>
void Triangular<B>::solve_right(View x) const {
  detail::TriangularRecursion<B>(*b_, l_, inverse_, x, false).solve_right(false, 0, order(), x);
}

template <Backend B>
void Triangular<B>::solve_right_transposed(View x) const {
  detail::TriangularRecursion<B>(*b_, l_, inverse_, x, false).solve_right(true, 0, order(), x);
}

template <Backend B>
void Triangular<B>::multiply_left(View x) const {
  detail::TriangularRecursion<B>(*b_, l_, inverse_, x, true).multiply_left(0, order(), x);
}

}  // namespace ccamerge
