#include "host/singular.hpp"

#include <algorithm>
#include <cstddef>
#include <random>
#include <stdexcept>
#include <utility>

#include "common/check.hpp"
#include "host/blas.hpp"

namespace ccamerge {

void svd_did_not_converge(int m, int n) {
  throw NumericalError(format_message("the singular value decomposition of a (", m, ", ", n,
                                      ") matrix did not converge; raise the ridge"));
}

namespace {

// Directions that the identity determines by less than this are formed apart; by less than the
// second rounding errors of the null spaces might decide.
constexpr double kWeak = 1e-4, kNothing = 1e-8;

void fill_normal(double* to, std::size_t count, std::mt19937_64& generator) {
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < count; ++i) to[i] = normal(generator);
}

// x -= q q^T x, where q q^T is a projector.
void project_out(ConstView q, View x) {
  Matrix inner(q.cols, x.cols);
  multiply(true, q, false, x, inner.view());
  multiply(false, q, false, inner.view(), x, -1.0, 1.0);
}

// Orthonormal columns that span those of x, each near its own where they are orthogonal already.
void orthonormalise(View x) {
  Matrix triangle(x.cols, x.cols);
  blas::qr(x.rows, x.cols, x.data, x.ld, triangle.data(), x.cols);
  for (int j = 0; j < x.cols; ++j) {
    if (triangle.at(j, j) < 0) std::for_each_n(x.col(j), x.rows, [](double& v) { v = -v; });
  }
}

}  // namespace

void link_null_spaces(View q, ConstView v2) {
  const int m = q.rows, k = v2.cols;
  if (k == 0) return;
  // u2 polar(u2^T I v2) is the polar factor of (u2 u2^T) I v2, and u2 u2^T = I - q q^T: u2, which
  // may be as large as the square of the rows, is never formed.
  Matrix u(m, k), vt(k, k), x(m, k);
  set_zero(x.view());
  copy(v2, x.view().block(0, 0, v2.rows, k));
  for (int pass = 0; pass < 2; ++pass) project_out(q, x.view());
  std::vector<double> s(static_cast<std::size_t>(k));
  if (blas::svd(m, k, x.data(), m, s.data(), u.data(), m, vt.data(), k) != 0) {
    svd_did_not_converge(m, k);
  }
  const auto above = [&s](double bound) {
    return static_cast<int>(
        std::find_if(s.begin(), s.end(), [=](double value) { return value <= bound; }) - s.begin());
  };
  const int strong = above(kWeak), some = above(kNothing);
  if (some > strong) {
    const View weak = u.view().block(0, strong, m, some - strong);
    for (int pass = 0; pass < 2; ++pass) {
      project_out(q, weak);
      if (strong > 0) project_out(u.view().block(0, 0, m, strong), weak);
      orthonormalise(weak);
    }
  }
  if (k > some) {
    // As near as can be to a matrix of normal random numbers with a fixed seed instead: whatever
    // bases the null spaces come in, that decides.
    Matrix random(m, q.cols), basis(q.cols, k - some), near(m, k - some), turn(k - some, k - some);
    std::mt19937_64 generator(1);
    fill_normal(random.data(), random.size(), generator);
    multiply(false, v2, true, vt.view().block(some, 0, k - some, k), basis.view());
    multiply(false, random.view(), false, basis.view(), near.view());
    for (int pass = 0; pass < 2; ++pass) {
      project_out(q, near.view());
      if (some > 0) project_out(u.view().block(0, 0, m, some), near.view());
    }
    Matrix left(m, k - some);
    if (blas::svd(m, k - some, near.data(), m, s.data(), left.data(), m, turn.data(), k - some) !=
        0) {
      svd_did_not_converge(m, k - some);
    }
    multiply(false, left.view(), false, turn.view(), u.view().block(0, some, m, k - some));
  }
  multiply(false, u.view(), false, vt.view(), x.view());
  multiply(false, x.view(), true, v2, q, 1.0, 1.0);
}

SvdPolar polar_by_svd(Matrix a, double rank_tolerance) {
  const int m = a.rows(), n = a.cols();
  if (m < n) {
    SvdPolar turned = polar_by_svd(transpose_of(a.view()), rank_tolerance);
    return {transpose_of(turned.q.view()), turned.rank};
  }
  if (n > blas::kMostSingular) {
    throw std::invalid_argument(
        format_message("the singular value decomposition of a (", m, ", ", n,
                       ") matrix needs workspace beyond LAPACK's 32-bit integers: at most ",
                       blas::kMostSingular, " features if directions are undetermined"));
  }
  Matrix u(m, n), vt(n, n);
  std::vector<double> s(static_cast<std::size_t>(n));
  if (blas::svd(m, n, a.data(), m, s.data(), u.data(), m, vt.data(), n) != 0) {
    svd_did_not_converge(m, n);
  }
  const double cut = rank_tolerance * s[0];
  SvdPolar out{std::move(a), 0};
  while (out.rank < n && s[static_cast<std::size_t>(out.rank)] > cut) ++out.rank;
  const int rank = out.rank;
  if (rank > 0) {
    multiply(false, u.view().block(0, 0, m, rank), false, vt.view().block(0, 0, rank, n),
             out.q.view());
  } else {
    set_zero(out.q.view());
  }
  link_null_spaces(out.q.view(), transpose_of(vt.view().block(rank, 0, n - rank, n)).view());
  return out;
}

Matrix complement_of(ConstView q) {
  // From normal random vectors with a fixed seed: their projections are independent. Twice is
  // enough.
  Matrix basis(q.rows, q.rows - q.cols);
  std::mt19937_64 generator(1);
  fill_normal(basis.data(), basis.size(), generator);
  for (int pass = 0; pass < 2; ++pass) {
    project_out(q, basis.view());
    orthonormalise(basis.view());
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
