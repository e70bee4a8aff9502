#include "universe.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>

#include "ascent.hpp"
#include "blocks.hpp"
#include "parallel.hpp"
#include "polar.hpp"
#include "spectral.hpp"

namespace ccamerge {
namespace {

struct Whitened {
  Blocks blocks;
  std::vector<std::optional<FactoredCovariance>> factors;  // empty without whitening
  double noise = 0;   // rounding errors of the blocks, relative
  double lowest = 0;  // bounds the eigenvalues of the matrix of all blocks from below
};

std::vector<double> with_mean_one(std::vector<double> weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& w : weights) w *= static_cast<double>(weights.size()) / sum;
  return weights;
}

Whitened whitened(const UniverseProblem& problem, const std::string& name) {
  const std::size_t n = problem.own.size();
  const auto model = [&](std::size_t i) { return "models[" + std::to_string(i) + "]"; };
  std::vector<int> widths;
  for (const ConstView s : problem.own) widths.push_back(s.rows);
  Whitened out{Blocks(widths, with_mean_one(problem.weights)), {}, 0, 0};
  if (problem.regulariser) out.factors.resize(n);
  std::vector<double> largest(n, 1.0);  // a bound on the eigenvalues of the whitened covariance
  parallel_for(n, [&](std::size_t i) {
    const Matrix s = checked_covariance(problem.own[i], name + model(i));
    if (problem.regulariser) {
      out.factors[i] = factor_covariance(s.view(), *problem.regulariser, name + model(i));
    } else {
      largest[i] = frobenius_norm(s.view());
    }
  });
  double first = 1, second = 1;  // the two largest conditions
  for (std::size_t i = 0; i < n; ++i) {
    const double w = out.blocks.weight(static_cast<int>(i));
    out.lowest = std::min(out.lowest, -w * w * largest[i]);
    if (!problem.regulariser) continue;
    second = std::max(second, std::min(first, out.factors[i]->condition));
    first = std::max(first, out.factors[i]->condition);
  }
  out.noise = 8 * std::numeric_limits<double>::epsilon() * std::sqrt(first * second);
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) pairs.emplace_back(i, j);
  }
  parallel_for(pairs.size(), [&](std::size_t p) {
    const auto [i, j] = pairs[p];
    check_finite(problem.crosses[p], name + model(i) + " with " + model(j));
    Matrix k = copy_of(problem.crosses[p]);
    if (problem.regulariser) {
      out.factors[j]->factor.solve_left(k.view());
      out.factors[i]->factor.solve_right_transposed(k.view());
    }
    out.blocks.cross(static_cast<int>(i), static_cast<int>(j)) = std::move(k);
  });
  return out;
}

// All models aligned with the first of the narrowest, whose features are the universe.
std::vector<Matrix> anchored(const Whitened& given, bool* full) {
  const Blocks& blocks = given.blocks;
  const int n = blocks.models();
  int anchor = 0;
  for (int i = 1; i < n; ++i) {
    if (blocks.width(i) < blocks.width(anchor)) anchor = i;
  }
  const int k = blocks.width(anchor);
  std::vector<Matrix> q(static_cast<std::size_t>(n));
  std::vector<int> ranks(static_cast<std::size_t>(n), k);
  parallel_for(q.size(), [&](std::size_t model) {
    const int i = static_cast<int>(model);
    if (i == anchor) {
      q[model] = eye(k, k);
      return;
    }
    Polar p = polar(i > anchor ? copy_of(blocks.cross(anchor, i).view())
                               : transpose_of(blocks.cross(i, anchor).view()),
                    given.noise);
    q[model] = std::move(p.q);
    ranks[model] = p.rank;
  });
  *full = *std::min_element(ranks.begin(), ranks.end()) == k;
  return q;
}

// The transpose of L_from^-T Q_from Q_to^T L_to^T.
Matrix map_between(const Whitened& given, const std::vector<Matrix>& q, std::size_t from,
                   std::size_t to) {
  const Matrix &right = q[from], &left = q[to];
  if (from == to && left.rows() == left.cols()) return eye(left.rows(), left.rows());
  Matrix out(left.rows(), right.rows());
  multiply(false, left.view(), true, right.view(), out.view());
  if (!given.factors.empty()) {
    given.factors[to]->factor.multiply_left(out.view());
    given.factors[from]->factor.solve_right(out.view());
  }
  return out;
}

UniverseSolution solve_one(const UniverseProblem& problem, const std::string& name,
                           const UniverseOptions& options) {
  Whitened given = whitened(problem, name);
  const int n = given.blocks.models();
  UniverseSolution out;
  for (const auto& factor : given.factors) out.conditions.push_back(factor->condition);

  // The matrix of all blocks says nothing of directions that correlate with no other model's, such
  // as dead units; the alignment with one model leaves them where they are.
  bool full = false;
  std::vector<Matrix> q = anchored(given, &full);
  if (n > 2 && full) {
    std::vector<Matrix> start = spectral_start(given.blocks, q, given.lowest);
    if (!start.empty() &&
        given.blocks.objective(views_of(start)) > given.blocks.objective(views_of(q))) {
      q = std::move(start);
      out.spectral = true;
    }
  }
  AscentResult found =
      ascend(given.blocks, q, {options.tolerance, options.sweeps, given.noise, !full});
  out.objectives = std::move(found.objectives);
  out.rank = found.rank;
  out.converged = found.converged;

  const auto r = static_cast<std::size_t>(options.reference);
  out.maps.resize(q.size());
  out.inverses.resize(q.size());
  parallel_for(q.size(), [&](std::size_t i) {
    out.maps[i] = map_between(given, q, i, r);
    out.inverses[i] = map_between(given, q, r, i);
  });
  return out;
}

}  // namespace

std::vector<UniverseSolution> solve_universe(const std::vector<UniverseProblem>& problems,
                                             const std::vector<std::string>& names,
                                             const UniverseOptions& options) {
  const BufferScope recycle;
  std::vector<std::size_t> order(problems.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto cost = [&](std::size_t i) {
    double sum = 0;
    for (const ConstView s : problems[i].own) sum += std::pow(s.rows, 3);
    return sum;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return cost(a) > cost(b); });
  std::vector<UniverseSolution> out(problems.size());
  const auto solve = [&](std::size_t turn) {
    const std::size_t i = order[turn];
    out[i] = solve_one(problems[i], names[i], options);
  };
  if (static_cast<int>(problems.size()) >= num_threads()) {
    parallel_for(order.size(), solve);
  } else {  // few problems: the threads share each
    for (std::size_t turn = 0; turn < order.size(); ++turn) solve(turn);
  }
  return out;
}

}  // namespace ccamerge
