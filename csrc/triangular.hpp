// Cholesky factors and triangular products built by recursion on matrix products: OpenBLAS's own
// trsm runs at a third of its gemm's rate at the orders that matter here (64 to 1024).
#pragma once

#include "matrix.hpp"

namespace ccamerge {

// Lower triangle of c = alpha a^T a (n, n) for a (m, n); the strict upper triangle is undefined.
void gram_lower(double alpha, ConstView a, View c);

// Lower factor L of a symmetric positive definite matrix, L L^T = a, with what makes solving fast:
// the inverses of its diagonal blocks.
class Cholesky {
 public:
  // Reads the lower triangle of a (n, n). info() says whether it is positive definite.
  explicit Cholesky(Matrix a);

  int order() const { return l_.rows(); }
  // 0, or the order of the first leading minor that is not positive definite; then nothing else
  // may be called.
  int info() const { return info_; }
  // L; the strict upper triangle is undefined outside the diagonal blocks.
  ConstView lower() const { return l_.view(); }

  // Estimate of the condition number of a in the 1-norm, from that norm; never above the truth.
  double condition(double norm1) const;

  void solve_left(View b) const;              // b = L^-1 b
  void solve_left_transposed(View b) const;   // b = L^-T b
  void solve_right(View b) const;             // b = b L^-1
  void solve_right_transposed(View b) const;  // b = b L^-T
  void multiply_left(View b) const;           // b = L b

 private:
  int info_ = 0;
  Matrix l_;
  Matrix inverse_blocks_;  // (block, n): the inverse of diagonal block k in columns k*block...
};

}  // namespace ccamerge
