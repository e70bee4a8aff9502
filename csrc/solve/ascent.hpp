// Block polar ascent: orthogonal matrices for all models that agree with each other the most.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "solve/backend.hpp"
#include "solve/blocks.hpp"
#include "solve/operands.hpp"
#include "solve/polar.hpp"

namespace ccamerge {

struct AscentOptions {
  double tolerance;  // ends when a sweep adds no more than this share of the objective
  int sweeps;        // at most
  double noise;      // singular values below this share of the largest count as zero
  bool deficient;    // some directions are undetermined: leave those where they are
};

struct AscentResult {
  std::vector<double> objectives;  // before the first and after each sweep; never falls
  int rank = 0;                    // the least of the last sweep's pulls
  bool converged = false;          // else the sweeps ran out
};

// Raises sum over i < j of w_i w_j tr(q[i]^T K_ij q[j]) over q[i] (d_i, k) with orthonormal
// columns: q[i] <- polar(sum over j of w_j K_ij q[j]), model after model (ten Berge 1977). Where
// that converges slowly the steps are lengthened as in successive over-relaxation (Young 1954); a
// step that would lower the objective is taken at its plain length.
template <Backend B>
AscentResult ascend(B& b, const Blocks<B>& blocks, std::vector<typename B::Matrix>& q,
                    const AscentOptions& options);

namespace detail {

inline constexpr double kSlow = 0.6;      // a sweep leaves this share of the error: worth relaxing
inline constexpr double kLongest = 1.6;   // longer ones overshoot where the rate was misjudged
inline constexpr int kFirstEstimate = 3;  // sweeps before the rate means anything

// The matrix with orthonormal columns that agrees the most with `pull`. Undetermined directions
// stay as near to `before` as can be, if asked for.
template <Backend B>
Polar<B> best(B& b, ConstView pull, ConstView before, const AscentOptions& options) {
  if (!options.deficient || before.rows != before.cols) return polar(b, pull, options.noise);
  auto turned = b.matrix(before.cols, pull.cols), q = b.matrix(before.rows, pull.cols);
  b.multiply(true, before, false, pull, turned.view());
  Polar<B> p = polar(b, turned.view(), options.noise);
  b.multiply(false, before, false, p.q.view(), q.view());
  p.q = std::move(q);
  return p;
}

// The step from `before` to q made `length` times as long, unless that would agree with `pull` less
// than `before` does.
template <Backend B>
typename B::Matrix relaxed(B& b, typename B::Matrix q, ConstView before, ConstView pull,
                           double length) {
  auto further = b.matrix(q.rows(), q.cols());
  b.combine(further.view(), length, q.view(), 1 - length, before);
  Polar<B> p = polar(b, further.view());
  const bool rises = b.inner(p.q.view(), pull).front() >= b.inner(before, pull).front();
  return rises ? std::move(p.q) : std::move(q);
}

// Young's optimal relaxation from the last rises of the plain ascent, which shrink by the square of
// its rate; 1 where that is fast.
inline double relaxation(const std::vector<double>& f) {
  const std::size_t n = f.size();
  const double rise = f[n - 1] - f[n - 2], before = f[n - 2] - f[n - 3];
  if (!(rise > 0 && before > 0)) return 1;
  const double rate = std::min(1.0, std::sqrt(rise / before));
  return rate < kSlow ? 1 : std::min(kLongest, 2 / (1 + std::sqrt(1 - rate)));
}

}  // namespace detail

template <Backend B>
AscentResult ascend(B& b, const Blocks<B>& blocks, std::vector<typename B::Matrix>& q,
                    const AscentOptions& options) {
  AscentResult out;
  const int n = blocks.models();
  double length = 1;
  out.objectives.push_back(blocks.objective(b, views_of(q)));
  for (int sweep = 0; sweep < options.sweeps; ++sweep) {
    double reached = 0;
    out.rank = q.front().cols();
    for (int i = 0; i < n; ++i) {
      auto& own = q[static_cast<std::size_t>(i)];
      auto lower = b.matrix(own.rows(), own.cols()), pull = b.matrix(own.rows(), own.cols());
      blocks.pull(b, i, 0, i, views_of(q), lower.view());
      blocks.pull(b, i, i, n, views_of(q), pull.view());
      b.combine(pull.view(), 1.0, pull.view(), 1.0, lower.view());
      b.poll();
      Polar<B> p = detail::best(b, pull.view(), own.view(), options);
      out.rank = std::min(out.rank, p.rank.front());
      if (p.rank.front() > 0) {
        own = length > 1 ? detail::relaxed(b, std::move(p.q), own.view(), pull.view(), length)
                         : std::move(p.q);
      }
      reached += blocks.weight(i) * b.inner(own.view(), lower.view()).front();
    }
    out.objectives.push_back(reached);
    const double rise = reached - out.objectives[out.objectives.size() - 2];
    out.converged = !(rise > options.tolerance * std::abs(reached));
    if (out.converged) break;
    if (length == 1 && sweep + 1 >= detail::kFirstEstimate) {
      length = detail::relaxation(out.objectives);
    }
  }
  return out;
}

}  // namespace ccamerge
