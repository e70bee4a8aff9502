#include "ascent.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "parallel.hpp"
#include "polar.hpp"

namespace ccamerge {
namespace {

constexpr double kSlow = 0.6;      // a sweep leaves this share of the error: worth relaxing
constexpr double kLongest = 1.6;   // relaxation; longer ones overshoot where the rate was misjudged
constexpr int kFirstEstimate = 3;  // sweeps before the rate means anything

// The matrix with orthonormal columns that agrees the most with `pull`. Undetermined directions
// stay as near to `before` as can be, if asked for.
Polar best(ConstView pull, ConstView before, const AscentOptions& options) {
  if (!options.deficient || before.rows != before.cols) {
    return polar(copy_of(pull), options.noise);
  }
  Matrix turned(before.cols, pull.cols);
  multiply(true, before, false, pull, turned.view());
  Polar p = polar(std::move(turned), options.noise);
  Matrix q(before.rows, pull.cols);
  multiply(false, before, false, p.q.view(), q.view());
  p.q = std::move(q);
  return p;
}

// The step from `before` to q made `length` times as long, unless that would agree with `pull` less
// than `before` does.
Matrix relaxed(Matrix q, ConstView before, ConstView pull, double length) {
  Matrix further = copy_of(q.view());
  for (int j = 0; j < before.cols; ++j) {
    for (int i = 0; i < before.rows; ++i) {
      further.at(i, j) += (length - 1) * (q.at(i, j) - before.at(i, j));
    }
  }
  Polar p = polar(std::move(further));
  return inner(p.q.view(), pull) >= inner(before, pull) ? std::move(p.q) : std::move(q);
}

// Young's optimal relaxation from the last rises of the plain ascent, which shrink by the square of
// its rate; 1 where that is fast.
double relaxation(const std::vector<double>& f) {
  const std::size_t n = f.size();
  const double rise = f[n - 1] - f[n - 2], before = f[n - 2] - f[n - 3];
  if (!(rise > 0 && before > 0)) return 1;
  const double rate = std::min(1.0, std::sqrt(rise / before));
  return rate < kSlow ? 1 : std::min(kLongest, 2 / (1 + std::sqrt(1 - rate)));
}

}  // namespace

AscentResult ascend(const Blocks& blocks, std::vector<Matrix>& q, const AscentOptions& options) {
  AscentResult out;
  const int n = blocks.models();
  double length = 1;
  out.objectives.push_back(blocks.objective(views_of(q)));
  for (int sweep = 0; sweep < options.sweeps; ++sweep) {
    double reached = 0;
    out.rank = q.front().cols();
    for (int i = 0; i < n; ++i) {
      Matrix& own = q[static_cast<std::size_t>(i)];
      Matrix lower(own.rows(), own.cols()), pull(own.rows(), own.cols());
      blocks.pull(i, 0, i, views_of(q), lower.view());
      blocks.pull(i, i, n, views_of(q), pull.view());
      for (std::size_t e = 0; e < pull.size(); ++e) pull.data()[e] += lower.data()[e];
      poll_interrupt();
      Polar p = best(pull.view(), own.view(), options);
      out.rank = std::min(out.rank, p.rank);
      if (p.rank > 0) {
        own =
            length > 1 ? relaxed(std::move(p.q), own.view(), pull.view(), length) : std::move(p.q);
      }
      reached += blocks.weight(i) * inner(own.view(), lower.view());
    }
    out.objectives.push_back(reached);
    const double rise = reached - out.objectives[out.objectives.size() - 2];
    out.converged = !(rise > options.tolerance * std::abs(reached));
    if (out.converged) break;
    if (length == 1 && sweep + 1 >= kFirstEstimate) length = relaxation(out.objectives);
  }
  return out;
}

}  // namespace ccamerge
