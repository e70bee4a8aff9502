#include "cpu/solve/singular.hpp"

#include <algorithm>
#include <cstddef>
#include <random>
#include <utility>

#include "check.hpp"
#include "cpu/solve/blas.hpp"

namespace ccamerge {

void svd_did_not_converge(int m, int n) {
  throw NumericalError(format_message("the singular value decomposition of a (", m, ", ", n,
                                      ") matrix did not converge; raise the ridge"));
}

NullSpaceLink link_null_spaces(ConstView u2, ConstView v2) {
  if (u2.cols == 0 || v2.cols == 0) return {};
  const int r = std::min(u2.rows, v2.rows), k = std::min(u2.cols, v2.cols);
  Matrix overlap(u2.cols, v2.cols);
  multiply(true, u2.block(0, 0, r, u2.cols), false, v2.block(0, 0, r, v2.cols), overlap.view());
  Matrix u(u2.cols, k), vt(k, v2.cols);
  std::vector<double> s(static_cast<std::size_t>(k));
  if (blas::gesdd(false, u2.cols, v2.cols, overlap.data(), u2.cols, s.data(), u.data(), u2.cols,
                  vt.data(), k) != 0) {
    svd_did_not_converge(u2.cols, v2.cols);
  }
  NullSpaceLink out{Matrix(u2.rows, k), Matrix(k, v2.rows)};
  multiply(false, u2, false, u.view(), out.left.view());
  multiply(false, vt.view(), true, v2, out.right.view());
  return out;
}

SvdPolar polar_by_svd(Matrix a, double rank_tolerance) {
  const int m = a.rows(), n = a.cols(), k = std::min(m, n);
  Matrix u(m, m), vt(n, n);
  std::vector<double> s(static_cast<std::size_t>(k));
  if (blas::gesdd(true, m, n, a.data(), m, s.data(), u.data(), m, vt.data(), n) != 0) {
    svd_did_not_converge(m, n);
  }
  const double cut = rank_tolerance * s[0];
  SvdPolar out{Matrix(m, n), 0};
  while (out.rank < k && s[static_cast<std::size_t>(out.rank)] > cut) ++out.rank;
  const int rank = out.rank;
  if (rank > 0) {
    multiply(false, u.view().block(0, 0, m, rank), false, vt.view().block(0, 0, rank, n),
             out.q.view());
  } else {
    set_zero(out.q.view());
  }
  if (rank < k) {
    const Matrix v2 = transpose_of(vt.view().block(rank, 0, n - rank, n));
    const NullSpaceLink link = link_null_spaces(u.view().block(0, rank, m, m - rank), v2.view());
    multiply(false, link.left.view(), false, link.right.view(), out.q.view(), 1.0, 1.0);
  }
  return out;
}

Matrix complement_of(ConstView q) {
  // From normal random vectors with a fixed seed: their projections are independent. Twice is
  // enough.
  const int r = q.rows, c = q.cols, k = r - c;
  Matrix basis(r, k), triangle(k, k), inner(c, k);
  std::mt19937_64 generator(1);
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < basis.size(); ++i) basis.data()[i] = normal(generator);
  for (int pass = 0; pass < 2; ++pass) {
    multiply(true, q, false, basis.view(), inner.view());
    multiply(false, q, false, inner.view(), basis.view(), -1.0, 1.0);
    blas::qr(r, k, basis.data(), r, triangle.data(), k);
  }
  return basis;
}

Matrix null_space(int n, const std::vector<int>& alive, const Matrix& missing) {
  Matrix out(n, n - static_cast<int>(alive.size()) + missing.cols());
  set_zero(out.view());
  int column = 0;
  std::size_t next = 0;
  for (int i = 0; i < n; ++i) {
    if (next < alive.size() && alive[next] == i) {
      for (int j = 0; j < missing.cols(); ++j) {
        out.at(i, out.cols() - missing.cols() + j) = missing.at(static_cast<int>(next), j);
      }
      ++next;
    } else {
      out.at(i, column++) = 1.0;
    }
  }
  return out;
}

}  // namespace ccamerge
