// The dynamically weighted Halley iteration for polar factors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <utility>
#include <vector>

#include "solve/backend.hpp"
#include "solve/norms.hpp"
#include "solve/operands.hpp"
#include "solve/triangular.hpp"

namespace ccamerge {

using Flags = std::vector<char>;  // of members

template <Backend B>
struct Qdwh {
  typename B::Matrix q;  // like the input; undefined where the member did not converge
  Flags converged;
  // Of members that converged: their smallest singular values are nearly always larger than this
  // share of the largest, and seldom more than several times as large.
  std::vector<double> least;
};

// The polar factors of a (m, n), finite, to some 1e-13 beyond their own condition numbers, which
// are the inverses of the smallest singular values. What does not converge has relative singular
// values below about 1e-8. Members to `skip` count as not converged. All take as many steps, and as
// many terms of the closing series, as the worst needs.
//
// Source: Nakatsukasa, Bai & Gygi, SIAM J. Matrix Anal. Appl. 31 (2010) 2700-2720, in the Cholesky
// form of Nakatsukasa & Higham, SIAM J. Sci. Comput. 35 (2013) A1325-A1349, eq. (4.3).
template <Backend B>
Qdwh<B> qdwh(B& b, ConstView a);

// The same of tall matrices (m >= n) whose Frobenius norms are known. Members with a norm of 0
// count as not converged.
template <Backend B>
Qdwh<B> qdwh_tall(B& b, ConstView a, const std::vector<double>& norms);

namespace detail {

// The Cholesky form loses digits with its weights, which grow like l^-4/3 with the lower bound l on
// the singular values. Below this one, steps are milder than they could be.
inline constexpr double kSteepest = 2e-5;
inline constexpr int kMaxSteps = 7;

// Error that the closing series may leave, relative in the Frobenius norm.
inline constexpr double kSeriesError = 2e-13;

struct HalleyWeights {
  double a, b, c;
  // What the step makes of the singular value x.
  double operator()(double x) const { return x * (a + b * x * x) / (1 + c * x * x); }
};

// The dynamical weights for singular values in [l, 1] (Nakatsukasa, Bai & Gygi, eq. 3.13).
inline HalleyWeights halley_weights(double l) {
  if (l > 1 - 1e-6) return {3, 1, 3};
  const double l2 = l * l;
  const double d = std::cbrt(4 * (1 - l2) / (l2 * l2));
  const double s = std::sqrt(1 + d);
  const double a = s + 0.5 * std::sqrt(std::max(0.0, 8 - 4 * d + 8 * (2 - l2) / (l2 * s)));
  const double b = (a - 1) * (a - 1) / 4;
  return {a, b, a + b - 1};
}

// Lower bounds, nearly always, on the smallest singular values of x from the lower triangles of
// g = x^T x, by inverse iteration on a few vectors with a margin; 0 if g is singular in rounding.
template <Backend B>
std::vector<double> smallest_singular_values(B& b, ConstView g) {
  constexpr int kVectors = 4, kIterations = 3;
  constexpr double kMargin = 0.5;
  const Cholesky<B> cholesky(b, copy_of(b, g));
  const Triangular<B> factor = cholesky.factor();
  std::vector<double> start(static_cast<std::size_t>(g.cols) * kVectors);
  std::mt19937_64 generator(1);
  for (double& x : start) x = static_cast<double>(generator()) / 0x1p63 - 1;
  auto one = b.matrix(g.cols, kVectors);
  b.upload(start.data(), one.view());
  auto v = copy_of(b, repeated(one.view(), g.count));
  std::vector<double> before, after;
  for (int i = 0; i < kIterations; ++i) {
    if (i == kIterations - 1) before = frobenius_norms(b, v.view());
    factor.solve_left(v.view());
    factor.solve_left_transposed(v.view());
  }
  after = frobenius_norms(b, v.view());
  std::vector<double> out;
  for (std::size_t k = 0; k < after.size(); ++k) {
    const double growth = after[k] / before[k];  // near 1 / sigma^2
    const bool regular = cholesky.info()[k] == 0 && std::isfinite(growth);
    out.push_back(regular ? std::min(1.0, kMargin / std::sqrt(growth)) : 0.0);
  }
  return out;
}

// The iteration on tall matrices (m >= n). Members that cannot go on are lost: the identity takes
// their place, which every step leaves as it is.
template <Backend B>
class Halley {
 public:
  Halley(B& b, ConstView a, const std::vector<double>& norms);

  void run();
  Qdwh<B> result() &&;

 private:
  bool all_lost() const {
    return std::all_of(lost_.begin(), lost_.end(), [](char lost) { return lost != 0; });
  }
  void lose(const Flags& now);
  bool finish(const std::vector<double>& away, bool last);
  bool accept(const std::vector<double>& remainders, bool last);
  void step(const std::vector<HalleyWeights>& weights);

  double allowed() const { return kSeriesError * std::sqrt(x_.cols()); }
  std::size_t members() const { return lost_.size(); }

  B& b_;
  typename B::Matrix x_, g_;  // g = x^T x, in its lower triangle
  Flags lost_;
  std::vector<double> least_;  // of the smallest singular values, at first
};

template <Backend B>
Halley<B>::Halley(B& b, ConstView a, const std::vector<double>& norms) : b_(b) {
  // Scaled first by the norm, whose squares could otherwise overflow, then by a sharper bound.
  std::vector<double> scale, shift;
  for (const double norm : norms) {
    lost_.push_back(!(norm > 0) || !std::isnormal(1 / norm));
    scale.push_back(lost_.back() ? 0 : 1 / norm);
    shift.push_back(lost_.back() ? 1 : 0);
  }
  if (all_lost()) return;
  x_ = b.matrix(a.rows, a.cols, a.count);
  b.combine(x_.view(), scale, a, shift);
  g_ = b.matrix(a.cols, a.cols, a.count);
  b.gram_lower(1.0, x_.view(), g_.view());
  std::vector<double> bounds = of_members(b, g_.view(), Part::lower, spectral_bound);
  for (std::size_t k = 0; k < members(); ++k) {
    scale[k] = 1 / std::sqrt(bounds[k]);
    bounds[k] = 1 / bounds[k];
  }
  b.combine(x_.view(), scale, x_.view());
  b.combine(g_.view(), bounds, g_.view(), 0.0, Part::lower);
}

template <Backend B>
void Halley<B>::lose(const Flags& now) {
  if (std::none_of(now.begin(), now.end(), [](char lost) { return lost != 0; })) return;
  std::vector<double> keep(members()), shift(members());
  for (std::size_t k = 0; k < members(); ++k) {
    lost_[k] = lost_[k] || now[k];
    keep[k] = now[k] ? 0 : 1;
    shift[k] = now[k] ? 1 : 0;
  }
  b_.combine(x_.view(), keep, x_.view(), shift);
  b_.combine(g_.view(), keep, g_.view(), shift, Part::lower);
}

template <Backend B>
void Halley<B>::run() {
  if (all_lost()) return;
  std::vector<double> l = least_ = smallest_singular_values(b_, g_.view());
  Flags singular;
  for (const double bound : l) singular.push_back(bound == 0);
  lose(singular);
  for (int steps = 0; !all_lost(); ++steps) {
    b_.poll();
    const auto away = of_members(b_, g_.view(), Part::lower, departure);
    if (finish(away, steps == kMaxSteps)) return;
    std::vector<HalleyWeights> weights;
    for (std::size_t k = 0; k < members(); ++k) {
      // No eigenvalue of I - g exceeds its norm.
      if (away[k] < 1) l[k] = std::max(l[k], std::sqrt(1 - away[k]));
      if (lost_[k]) l[k] = 1;
      weights.push_back(halley_weights(std::max(l[k], kSteepest)));
      l[k] = std::min(1.0, weights[k](l[k]));
    }
    step(weights);
  }
}

// Whether the series serves every member that is not lost; on the last occasion, those that it does
// not serve are lost.
template <Backend B>
bool Halley<B>::accept(const std::vector<double>& remainders, bool last) {
  Flags now(members(), 0);
  for (std::size_t k = 0; k < members(); ++k) now[k] = !lost_[k] && !(remainders[k] <= allowed());
  if (std::none_of(now.begin(), now.end(), [](char lost) { return lost != 0; })) return true;
  if (last) {
    for (std::size_t k = 0; k < members(); ++k) lost_[k] = lost_[k] || now[k];
  }
  return last;
}

// x <- x (I + E/2 + 3/8 E^2 + 5/16 E^3), E = I - g: the last step of the iteration, to as many
// terms as the worst error needs. False, and everything as it was, if an E is too large for the
// series. `away` is ||E||_F.
//
// The norms ||E||_F and ||E^2||_F bound the sums over the eigenvalues e of E that the remainders
// 3/8 E^2, 5/16 E^3 and 35/128 E^4 amount to: sum e^6 <= (sum e^4)^1.5, for one.
template <Backend B>
bool Halley<B>::finish(const std::vector<double>& away, bool last) {
  std::vector<double> remainders;
  for (const double e : away) remainders.push_back(35.0 / 128 * std::pow(e, 4) / 1e3);
  if (!accept(remainders, last)) return false;  // would fail below
  const int n = g_.cols(), count = g_.count();
  double farthest = 0;
  for (std::size_t k = 0; k < members(); ++k) {
    if (!lost_[k]) farthest = std::max(farthest, away[k]);
  }
  const View e = g_.view();
  b_.combine(e, -1.0, e, 1.0, Part::lower);
  auto polynomial = b_.matrix(n, n, count);  // without its identity, in the lower triangle at first
  const View p = polynomial.view();
  if (0.375 * farthest * farthest <= allowed()) {
    b_.combine(p, 0.5, e, 0.0, Part::lower);
  } else {
    b_.mirror_lower(e);
    b_.gram_lower(1.0, e, p);  // E^2
    const auto squares = of_members(b_, p, Part::lower, plain_norm);
    remainders.clear();
    for (const double square : squares) remainders.push_back(35.0 / 128 * square * square);
    if (!accept(remainders, last)) {
      b_.combine(e, -1.0, e, 1.0, Part::lower);
      return false;
    }
    double largest = 0;
    for (std::size_t k = 0; k < members(); ++k) {
      if (!lost_[k]) largest = std::max(largest, squares[k]);
    }
    if (0.3125 * std::pow(largest, 1.5) > allowed()) {
      b_.mirror_lower(p);
      auto rest = b_.matrix(n, n, count), product = b_.matrix(n, n, count);
      b_.combine(rest.view(), 0.3125, e, 0.375);
      b_.multiply(false, p, false, rest.view(), product.view());
      b_.combine(p, 0.5, e, 1.0, product.view(), 0.0, Part::lower);
    } else {
      b_.combine(p, 0.5, e, 0.375, p, 0.0, Part::lower);
    }
  }
  b_.mirror_lower(p);
  const auto before = copy_of(b_, x_.view());
  b_.multiply(false, before.view(), false, p, x_.view(), 1.0, 1.0);
  return true;
}

// x <- (b/c) x + (a - b/c) x (I + c g)^-1. Only overflow could make I + c g indefinite.
template <Backend B>
void Halley<B>::step(const std::vector<HalleyWeights>& weights) {
  std::vector<double> c, keep, add;
  for (const HalleyWeights& w : weights) {
    c.push_back(w.c);
    keep.push_back(w.b / w.c);
    add.push_back(w.a - keep.back());
  }
  b_.combine(g_.view(), c, g_.view(), 1.0, Part::lower);
  const Cholesky<B> z(b_, std::move(g_));
  auto y = copy_of(b_, x_.view());
  z.factor().solve_right_transposed(y.view());
  z.factor().solve_right(y.view());
  b_.combine(x_.view(), keep, x_.view(), add, y.view());
  g_ = b_.matrix(x_.cols(), x_.cols(), x_.count());
  b_.gram_lower(1.0, x_.view(), g_.view());
  Flags failed;
  for (const int info : z.info()) failed.push_back(info != 0);
  lose(failed);
}

template <Backend B>
Qdwh<B> Halley<B>::result() && {
  Flags converged;
  for (const char lost : lost_) converged.push_back(!lost);
  least_.resize(members());  // nothing was found of what was lost at once
  return {std::move(x_), std::move(converged), std::move(least_)};
}

}  // namespace detail

template <Backend B>
Qdwh<B> qdwh_tall(B& b, ConstView a, const std::vector<double>& norms) {
  detail::Halley<B> halley(b, a, norms);
  halley.run();
  return std::move(halley).result();
}

template <Backend B>
Qdwh<B> qdwh(B& b, ConstView a) {
  if (a.rows >= a.cols) return qdwh_tall(b, a, frobenius_norms(b, a));
  const auto turned = transpose_of(b, a);
  Qdwh<B> out = qdwh_tall(b, turned.view(), frobenius_norms(b, turned.view()));
  if (!out.q.empty()) out.q = transpose_of(b, out.q.view());
  return out;
}

}  // namespace ccamerge
