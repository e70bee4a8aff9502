// The 1-norm of an inverse, from a few solves.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "solve/backend.hpp"
#include "solve/triangular.hpp"

namespace ccamerge {

namespace detail {

// One member's search for a unit vector that a symmetric matrix makes as long as can be.
class NormEstimate {
 public:
  explicit NormEstimate(std::size_t order) : signs_(order, 0.0) {}

  bool done() const { return done_; }
  double norm() const { return norm_; }

  // A lower bound on the norm.
  void found(double bound) {
    norm_ = std::isnan(bound) ? std::numeric_limits<double>::infinity() : std::max(norm_, bound);
    if (!std::isfinite(norm_)) done_ = true;
  }

  // Takes the image of the last vector asked for, and puts the next one in its place.
  void advance(std::span<double> x) {
    if (done_) {
      std::fill(x.begin(), x.end(), 0.0);
      return;
    }
    along_signs_ ? from_signs(x) : from_unit(x);
  }

 private:
  static constexpr int kMostTurns = 5;

  void from_unit(std::span<double> x) {  // x is a column of the inverse, or their mean
    double sum = 0;
    bool same = true;
    for (std::size_t i = 0; i < x.size(); ++i) {
      sum += std::abs(x[i]);
      const double sign = x[i] >= 0 ? 1.0 : -1.0;
      same = same && sign == signs_[i];
      x[i] = signs_[i] = sign;
    }
    // Without a rise, or with the signs of before, the next turns would bring nothing new.
    const bool rose = turn_ == 0 || sum > norm_;
    found(sum);
    along_signs_ = true;
    if (same || !rose) done_ = true;
    if (done_) std::fill(x.begin(), x.end(), 0.0);
  }

  void from_signs(std::span<double> x) {  // x is the gradient: its largest entry says where to go
    const auto size = [](double a, double b) { return std::abs(a) < std::abs(b); };
    const auto next =
        static_cast<std::size_t>(std::max_element(x.begin(), x.end(), size) - x.begin());
    along_signs_ = false;
    done_ = (turn_ > 0 && std::abs(x[next]) <= std::abs(x[at_])) || turn_ == kMostTurns - 1;
    ++turn_;
    at_ = next;
    std::fill(x.begin(), x.end(), 0.0);
    if (!done_) x[next] = 1;
  }

  std::vector<double> signs_;
  std::size_t at_ = 0;
  double norm_ = 0;
  int turn_ = 0;
  bool along_signs_ = false, done_ = false;
};

}  // namespace detail

// For each factor L an estimate of ||(L L^T)^-1||_1, never above it but for rounding, and seldom
// below a third; infinity where solving overflows.
//
// Source: Higham, ACM Trans. Math. Softw. 14 (1988) 381-396, as in LAPACK's dlacn2.
template <Backend B>
std::vector<double> inverse_norms(B& b, const Triangular<B>& factor, int count) {
  const int n = factor.order();
  const auto order = static_cast<std::size_t>(n);
  const auto members = static_cast<std::size_t>(count);
  const auto images = [&](std::vector<double>& x, int columns) {
    auto stack = b.matrix(n, columns, count);
    b.upload(x.data(), stack.view());
    factor.solve_left(stack.view());
    factor.solve_left_transposed(stack.view());
    b.download(stack.view(), x.data());
  };
  // The mean of all columns, and a vector of alternating signs for matrices whose cancellations
  // would deceive the search.
  std::vector<double> first(2 * order * members), x(order * members), out(members);
  for (std::size_t i = 0; i < first.size(); i += 2 * order) {
    for (std::size_t j = 0; j < order; ++j) {
      first[i + j] = 1.0 / n;
      const double size = 1 + static_cast<double>(j) / std::max(1, n - 1);
      first[i + order + j] = j % 2 == 0 ? size : -size;
    }
  }
  images(first, 2);
  std::vector<detail::NormEstimate> searches(members, detail::NormEstimate(order));
  const auto at = [&](std::size_t k) { return std::span(x.data() + order * k, order); };
  for (std::size_t k = 0; k < members; ++k) {
    const double* const mean = first.data() + 2 * order * k;
    std::copy_n(mean, order, at(k).begin());
    searches[k].advance(at(k));
    for (std::size_t j = 0; j < order; ++j) out[k] += std::abs(mean[order + j]);
    out[k] *= 2 / (3.0 * n);  // that vector has norm 3 n / 2
  }
  const auto open = [](const detail::NormEstimate& search) { return !search.done(); };
  while (n > 1 && std::any_of(searches.begin(), searches.end(), open)) {
    images(x, 1);
    for (std::size_t k = 0; k < members; ++k) searches[k].advance(at(k));
  }
  for (std::size_t k = 0; k < members; ++k) out[k] = std::fmax(out[k], searches[k].norm());
  return out;
}

}  // namespace ccamerge
