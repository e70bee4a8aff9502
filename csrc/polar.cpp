#include "polar.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "blas.hpp"
#include "check.hpp"
#include "qdwh.hpp"

namespace ccamerge {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

[[noreturn]] void no_convergence(int m, int n) {
  throw NumericalError(format_message("the singular value decomposition of a (", m, ", ", n,
                                      ") matrix did not converge; raise the ridge"));
}

// Adds u2 polar(u2^T eye v2) v2^T to q: the null spaces are joined as near the identity as can be.
void join_null_spaces(ConstView u2, ConstView v2, View q) {
  if (u2.cols == 0 || v2.cols == 0) return;
  const int r = std::min(u2.rows, v2.rows), k = std::min(u2.cols, v2.cols);
  Matrix overlap(u2.cols, v2.cols);
  multiply(true, u2.block(0, 0, r, u2.cols), false, v2.block(0, 0, r, v2.cols), overlap.view());
  Matrix u(u2.cols, k), vt(k, v2.cols);
  std::vector<double> s(static_cast<std::size_t>(k));
  if (blas::gesdd(false, u2.cols, v2.cols, overlap.data(), u2.cols, s.data(), u.data(), u2.cols,
                  vt.data(), k) != 0) {
    no_convergence(u2.cols, v2.cols);
  }
  Matrix left(u2.rows, k), right(k, v2.rows);
  multiply(false, u2, false, u.view(), left.view());
  multiply(false, vt.view(), true, v2, right.view());
  multiply(false, left.view(), false, right.view(), q, 1.0, 1.0);
}

Polar polar_by_svd(ConstView a, double rank_tolerance) {
  const int m = a.rows, n = a.cols, k = std::min(m, n);
  Matrix work = copy_of(a), u(m, m), vt(n, n);
  std::vector<double> s(static_cast<std::size_t>(k));
  if (blas::gesdd(true, m, n, work.data(), m, s.data(), u.data(), m, vt.data(), n) != 0) {
    no_convergence(m, n);
  }
  const double cut = rank_tolerance * s[0];
  int rank = 0;
  while (rank < k && s[static_cast<std::size_t>(rank)] > cut) ++rank;
  Polar out{Matrix(m, n), rank, PolarMethod::svd};
  if (rank > 0) {
    multiply(false, u.view().block(0, 0, m, rank), false, vt.view().block(0, 0, rank, n),
             out.q.view());
  } else {
    set_zero(out.q.view());
  }
  if (rank < k) {
    const Matrix v2 = transpose_of(vt.view().block(rank, 0, n - rank, n));
    join_null_spaces(u.view().block(0, rank, m, m - rank), v2.view(), out.q.view());
  }
  return out;
}

// Rows (or columns) with any entry that is not zero.
std::vector<int> alive_rows(ConstView a) {
  std::vector<char> alive(static_cast<std::size_t>(a.rows), 0);
  for (int j = 0; j < a.cols; ++j) {
    for (int i = 0; i < a.rows; ++i) alive[static_cast<std::size_t>(i)] |= a.at(i, j) != 0;
  }
  std::vector<int> out;
  for (int i = 0; i < a.rows; ++i) {
    if (alive[static_cast<std::size_t>(i)]) out.push_back(i);
  }
  return out;
}

std::vector<int> alive_cols(ConstView a) {
  std::vector<int> out;
  for (int j = 0; j < a.cols; ++j) {
    if (std::any_of(a.col(j), a.col(j) + a.rows, [](double x) { return x != 0; })) out.push_back(j);
  }
  return out;
}

// An orthonormal basis (r, r - c) of what the orthonormal columns of q (r, c) leave. From normal
// random vectors with a fixed seed: their projections are independent. Twice is enough.
Matrix complement_of(ConstView q) {
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

// A basis (n, n - rank) of the null space, given the alive coordinates and the basis of what is
// missing among those.
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

// The polar factor of an a with zero rows or columns, as dead units leave them: of the rest, then
// joined. Nothing if the rest is rank-deficient too.
std::optional<Polar> polar_of_alive(ConstView a, const std::vector<int>& rows,
                                    const std::vector<int>& cols) {
  const int r = static_cast<int>(rows.size()), c = static_cast<int>(cols.size());
  Matrix rest(r, c);
  for (int j = 0; j < c; ++j) {
    for (int i = 0; i < r; ++i) {
      rest.at(i, j) = a.at(rows[static_cast<std::size_t>(i)], cols[static_cast<std::size_t>(j)]);
    }
  }
  const std::optional<Matrix> q = r > 0 ? qdwh(rest.view()) : Matrix(0, 0);
  if (!q) return std::nullopt;
  Polar out{Matrix(a.rows, a.cols), std::min(r, c), PolarMethod::qdwh};
  set_zero(out.q.view());
  for (int j = 0; j < c; ++j) {
    for (int i = 0; i < r; ++i) {
      out.q.at(rows[static_cast<std::size_t>(i)], cols[static_cast<std::size_t>(j)]) = q->at(i, j);
    }
  }
  Matrix u, v;  // what the wider side of the rest misses
  if (r > c && c < a.cols) u = complement_of(q->view());
  if (r < c && r < a.rows) v = complement_of(transpose_of(q->view()).view());
  join_null_spaces(null_space(a.rows, rows, u).view(), null_space(a.cols, cols, v).view(),
                   out.q.view());
  return out;
}

}  // namespace

Polar polar(Matrix a, double rank_tolerance) {
  const int m = a.rows(), n = a.cols();
  const std::vector<int> rows = alive_rows(a.view()), cols = alive_cols(a.view());
  if (static_cast<int>(rows.size()) < m || static_cast<int>(cols.size()) < n) {
    if (auto out = polar_of_alive(a.view(), rows, cols)) return std::move(*out);
  } else if (auto q = qdwh(a.view())) {
    return {std::move(*q), std::min(m, n), PolarMethod::qdwh};
  }
  return polar_by_svd(a.view(), std::max(rank_tolerance, std::max(m, n) * kEps));
}

ThinSvd svd_from_polar(ConstView a, ConstView q, bool vectors) {
  // a = q h for a tall a, a = h q for a wide one, h symmetric positive semidefinite.
  const bool tall = a.rows >= a.cols;
  const int k = std::min(a.rows, a.cols);
  Matrix h(k, k);
  if (tall) {
    multiply(true, q, false, a, h.view());
  } else {
    multiply(false, a, true, q, h.view());
  }
  for (int j = 0; j < k; ++j) {
    for (int i = j + 1; i < k; ++i) h.at(i, j) = 0.5 * (h.at(i, j) + h.at(j, i));
  }
  std::vector<double> ascending(static_cast<std::size_t>(k));
  if (blas::syevd(vectors, k, h.data(), k, ascending.data()) != 0) no_convergence(a.rows, a.cols);
  ThinSvd out;
  out.s = Matrix(k, 1);
  for (int i = 0; i < k; ++i) {
    out.s.at(i, 0) = std::max(0.0, ascending[static_cast<std::size_t>(k - 1 - i)]);
  }
  if (!vectors) return out;
  Matrix inner(k, k);
  for (int j = 0; j < k; ++j) std::copy_n(h.view().col(k - 1 - j), k, inner.view().col(j));
  Matrix outer(tall ? a.rows : a.cols, k);
  multiply(!tall, q, false, inner.view(), outer.view());
  out.u = std::move(tall ? outer : inner);
  out.v = std::move(tall ? inner : outer);
  return out;
}

}  // namespace ccamerge
