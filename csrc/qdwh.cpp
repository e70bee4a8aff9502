#include "qdwh.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "triangular.hpp"

namespace ccamerge {
namespace {

// The Cholesky form loses digits with its weights, which grow like l^-4/3 with the lower bound l on
// the singular values. Below this one, steps are milder than they could be.
constexpr double kSteepest = 2e-5;
constexpr int kMaxSteps = 7;

// Error that the closing series may leave, relative in the Frobenius norm.
constexpr double kSeriesError = 2e-13;

struct Weights {
  double a, b, c;
  // What the step makes of the singular value x.
  double operator()(double x) const { return x * (a + b * x * x) / (1 + c * x * x); }
};

// The dynamical weights for singular values in [l, 1] (Nakatsukasa, Bai & Gygi, eq. 3.13).
Weights halley_weights(double l) {
  if (l > 1 - 1e-6) return {3, 1, 3};
  const double l2 = l * l;
  const double d = std::cbrt(4 * (1 - l2) / (l2 * l2));
  const double s = std::sqrt(1 + d);
  const double a = s + 0.5 * std::sqrt(std::max(0.0, 8 - 4 * d + 8 * (2 - l2) / (l2 * s)));
  const double b = (a - 1) * (a - 1) / 4;
  return {a, b, a + b - 1};
}

// ||I - g||_F of the symmetric g, from its lower triangle.
double departure(ConstView g) {
  double diagonal = 0, below = 0;
  for (int j = 0; j < g.cols; ++j) {
    const double* column = g.col(j);
    diagonal += (1 - column[j]) * (1 - column[j]);
    for (int i = j + 1; i < g.rows; ++i) below += column[i] * column[i];
  }
  return std::sqrt(diagonal + 2 * below);
}

// ||g||_F of the symmetric g, from its lower triangle.
double symmetric_norm(ConstView g) {
  double diagonal = 0, below = 0;
  for (int j = 0; j < g.cols; ++j) {
    const double* column = g.col(j);
    diagonal += column[j] * column[j];
    for (int i = j + 1; i < g.rows; ++i) below += column[i] * column[i];
  }
  return std::sqrt(diagonal + 2 * below);
}

// An upper bound on the largest eigenvalue of the symmetric g (lower triangle): the smaller of its
// Frobenius and infinity norms.
double spectral_bound(ConstView g) {
  std::vector<double> row_sums(static_cast<std::size_t>(g.rows), 0.0);
  double squares = 0;
  for (int j = 0; j < g.cols; ++j) {
    for (int i = j; i < g.rows; ++i) {
      const double x = std::abs(g.at(i, j));
      squares += i == j ? x * x : 2 * x * x;
      row_sums[static_cast<std::size_t>(i)] += x;
      if (i != j) row_sums[static_cast<std::size_t>(j)] += x;
    }
  }
  return std::min(std::sqrt(squares), *std::max_element(row_sums.begin(), row_sums.end()));
}

// A lower bound, nearly always, on the smallest singular value of x from the lower triangle of
// g = x^T x, by inverse iteration on a few vectors with a margin; 0 if g is singular in rounding.
double smallest_singular_value(ConstView g) {
  constexpr int kVectors = 4, kIterations = 3;
  constexpr double kMargin = 0.5;
  const Cholesky factor(copy_of(g));
  if (factor.info() != 0) return 0;
  Matrix v(g.rows, kVectors);
  std::mt19937_64 generator(1);
  for (std::size_t i = 0; i < v.size(); ++i) {
    v.data()[i] = static_cast<double>(generator()) / 0x1p63 - 1;
  }
  double before = frobenius_norm(v.view()), growth = 0;
  for (int k = 0; k < kIterations; ++k) {
    factor.solve_left(v.view());
    factor.solve_left_transposed(v.view());
    const double after = frobenius_norm(v.view());
    growth = after / before;  // rises towards 1 / sigma^2
    before = after;
  }
  return std::isfinite(growth) ? std::min(1.0, kMargin / std::sqrt(growth)) : 0;
}

// x <- x (I + E/2 + 3/8 E^2 + 5/16 E^3), E = I - g and g = x^T x: the last step of the iteration,
// to as many terms as the error needs. Destroys g (lower triangle in). False, and x as it was, if
// E is too large for the series. `away` is ||E||_F.
//
// The norms ||E||_F and ||E^2||_F bound the sums over the eigenvalues e of E that the remainders
// 3/8 E^2, 5/16 E^3 and 35/128 E^4 amount to: sum e^6 <= (sum e^4)^1.5, for one.
bool finish(Matrix& x, View g, double away) {
  const int n = g.cols;
  const double allowed = kSeriesError * std::sqrt(n);
  if (!(35.0 / 128 * std::pow(away, 4) <= 1e3 * allowed)) return false;  // would fail below
  for (int j = 0; j < n; ++j) {
    double* column = g.col(j);
    for (int i = j; i < n; ++i) column[i] = -column[i];
    column[j] += 1;
  }
  Matrix p(n, n);  // the polynomial without its identity, in the lower triangle at first
  const View s = p.view();
  if (0.375 * away * away <= allowed) {
    for (int j = 0; j < n; ++j) {
      for (int i = j; i < n; ++i) s.at(i, j) = 0.5 * g.at(i, j);
    }
  } else {
    mirror_lower(g);
    gram_lower(1.0, g, s);  // E^2
    const double square = symmetric_norm(s);
    const bool cubic = 0.3125 * std::pow(square, 1.5) > allowed;
    if (35.0 / 128 * square * square > allowed) {  // give g back
      for (int j = 0; j < n; ++j) {
        double* column = g.col(j);
        for (int i = j; i < n; ++i) column[i] = -column[i];
        column[j] += 1;
      }
      return false;
    }
    if (cubic) {
      mirror_lower(s);
      Matrix rest(n, n);  // 3/8 I + 5/16 E
      for (std::size_t i = 0; i < rest.size(); ++i) rest.data()[i] = 0.3125 * g.data[i];
      for (int j = 0; j < n; ++j) rest.at(j, j) += 0.375;
      Matrix q(n, n);
      multiply(false, s, false, rest.view(), q.view());
      for (int j = 0; j < n; ++j) {
        for (int i = j; i < n; ++i) s.at(i, j) = 0.5 * g.at(i, j) + q.at(i, j);
      }
    } else {
      for (int j = 0; j < n; ++j) {
        for (int i = j; i < n; ++i) s.at(i, j) = 0.5 * g.at(i, j) + 0.375 * s.at(i, j);
      }
    }
  }
  mirror_lower(s);
  const Matrix before = copy_of(x.view());
  multiply(false, before.view(), false, s, x.view(), 1.0, 1.0);
  return true;
}

// x <- (b/c) x + (a - b/c) x (I + c g)^-1; destroys g. False if I + c g is not positive definite,
// which only overflow could bring about.
bool halley_step(Matrix& x, Matrix& g, const Weights& w) {
  for (int j = 0; j < g.cols(); ++j) {
    double* column = g.view().col(j);
    for (int i = j; i < g.rows(); ++i) column[i] *= w.c;
    column[j] += 1;
  }
  const Cholesky z(std::move(g));
  if (z.info() != 0) return false;
  Matrix y = copy_of(x.view());
  z.solve_right_transposed(y.view());
  z.solve_right(y.view());
  const double keep = w.b / w.c, add = w.a - keep;
  for (std::size_t i = 0; i < x.size(); ++i) x.data()[i] = keep * x.data()[i] + add * y.data()[i];
  return true;
}

// The polar factor of a tall a (m >= n) of numerically full rank; nothing if it does not converge,
// which means singular values near zero.
std::optional<Matrix> qdwh_tall(ConstView a) {
  const int n = a.cols;
  // Scaled first by the norm, whose squares could otherwise overflow, then by a sharper bound.
  const double norm = frobenius_norm(a);
  if (!(norm > 0) || !std::isnormal(1 / norm)) return std::nullopt;
  Matrix x = copy_of(a);
  for (std::size_t i = 0; i < x.size(); ++i) x.data()[i] /= norm;
  Matrix g(n, n);
  gram_lower(1.0, x.view(), g.view());
  const double bound = spectral_bound(g.view()), scale = 1 / std::sqrt(bound);
  for (std::size_t i = 0; i < x.size(); ++i) x.data()[i] *= scale;
  for (std::size_t i = 0; i < g.size(); ++i) g.data()[i] *= 1 / bound;

  double l = smallest_singular_value(g.view());
  if (l == 0) return std::nullopt;
  for (int step = 0;; ++step) {
    poll_interrupt();
    const double away = departure(g.view());
    if (finish(x, g.view(), away)) return x;
    if (step == kMaxSteps) return std::nullopt;
    if (away < 1) l = std::max(l, std::sqrt(1 - away));  // no eigenvalue of E exceeds its norm
    const Weights w = halley_weights(std::max(l, kSteepest));
    if (!halley_step(x, g, w)) return std::nullopt;
    l = std::min(1.0, w(l));
    g = Matrix(n, n);
    gram_lower(1.0, x.view(), g.view());
  }
}

}  // namespace

std::optional<Matrix> qdwh(ConstView a) {
  if (a.rows >= a.cols) return qdwh_tall(a);
  std::optional<Matrix> q = qdwh_tall(transpose_of(a).view());
  if (q) q = transpose_of(q->view());
  return q;
}

}  // namespace ccamerge
