// All models aligned with each other, through one space that none of them owns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "solve/ascent.hpp"
#include "solve/backend.hpp"
#include "solve/blocks.hpp"
#include "solve/covariance.hpp"
#include "solve/norms.hpp"
#include "solve/operands.hpp"
#include "solve/plausible.hpp"
#include "solve/polar.hpp"
#include "solve/spectral.hpp"

namespace ccamerge {

// Second moments of one feature space in N >= 2 models; single matrices.
struct UniverseProblem {
  std::vector<ConstView> own;              // (d_i, d_i) symmetric
  std::vector<ConstView> crosses;          // (d_j, d_i) for i < j: (0, 1), (0, 2), ..., (N-2, N-1)
  std::vector<double> weights;             // of the models, not negative, not all zero
  std::optional<Regulariser> regulariser;  // none: no whitening, the maps are rotations
};

struct UniverseOptions {
  int reference = 0;        // where the maps lead
  double tolerance = 1e-9;  // of the ascent: share of the objective
  int sweeps = 200;         // at most
};

// Everything is stored transposed, which a C-order array reads back as named.
template <Backend B>
struct UniverseSolution {
  std::vector<typename B::Matrix> maps;      // (d_i, d_r) for each model: the transpose of T_i
  std::vector<typename B::Matrix> inverses;  // (d_r, d_i)
  std::vector<double> objectives;
  std::vector<double> conditions;  // of each regularised covariance; empty without whitening
  int rank = 0;                    // least rank of what the others want of a model
  bool spectral = false;           // else the start was an alignment with one model
  bool converged = false;          // the last sweep added no more than the tolerance
};

// Every problem, in parallel where the backend has threads. With C_i = S_ii + gamma I = L_i L_i^T
// and K_ij = L_i^-1 S_ij L_j^-T, Q_i (d_i, k) with orthonormal columns, k = min d_i, raise
// sum over i < j of w_i w_j tr(Q_i^T K_ij Q_j), weights scaled to a mean of one. That minimises
// the weighted squared distances of the whitened features from their weighted mean.
// T_i = L_i^-T Q_i Q_r^T L_r^T
// and its inverse L_r^-T Q_r Q_i^T L_i^T. Everything but these last products is the same for every
// reference. `names` and errors as for solve_cca; messages add the model.
//
// Sources: ten Berge, Psychometrika 42 (1977), MAXBET; Kettenring, Biometrika 58 (1971), MAXVAR.
template <Backend B>
std::vector<UniverseSolution<B>> solve_universe(B& b, const std::vector<UniverseProblem>& problems,
                                                const std::vector<std::string>& names,
                                                const UniverseOptions& options);

namespace detail {

template <Backend B>
struct Whitened {
  Blocks<B> blocks;
  std::vector<std::optional<FactoredCovariances<B>>> factors;  // empty without whitening
  double noise = 0;   // rounding errors of the blocks, relative
  double lowest = 0;  // bounds the eigenvalues of the matrix of all blocks from below
};

inline std::vector<double> with_mean_one(std::vector<double> weights) {
  const double largest = *std::max_element(weights.begin(), weights.end());
  for (double& w : weights) w /= largest;  // their sum could overflow, and vanishes if they do
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& w : weights) w *= static_cast<double>(weights.size()) / sum;
  return weights;
}

template <Backend B>
Whitened<B> whitened(B& b, const UniverseProblem& problem, const std::string& name) {
  const std::size_t n = problem.own.size();
  const auto model = [&](std::size_t i) { return "models[" + std::to_string(i) + "]"; };
  std::vector<int> widths;
  for (const ConstView s : problem.own) widths.push_back(s.rows);
  Whitened<B> out{Blocks<B>(widths, with_mean_one(problem.weights)), {}, 0, 0};
  if (problem.regulariser) out.factors.resize(n);
  std::vector<std::vector<double>> deviations(n);
  std::vector<double> largest(n, 1.0);  // a bound on the eigenvalues of the whitened covariance
  b.each(n, [&](std::size_t i) {
    const std::vector<std::string> called = {name + model(i)};
    const Covariances<B> checked = checked_covariances(b, {problem.own[i]}, called);
    const Regulariser regulariser = problem.regulariser.value_or(Regulariser{kEntryError, false});
    const std::vector<CovarianceCase> cases = cases_of(checked, regulariser, called);
    deviations[i] = cases.front().deviations();
    if (problem.regulariser) {
      out.factors[i] = factor_covariances(b, cases);
    } else {
      largest[i] = frobenius_norms(b, checked.s.view()).front();
    }
  });
  double first = 1, second = 1;  // the two largest conditions
  for (std::size_t i = 0; i < n; ++i) {
    const double w = out.blocks.weight(static_cast<int>(i));
    out.lowest = std::min(out.lowest, -w * w * largest[i]);
    if (!problem.regulariser) continue;
    const double condition = out.factors[i]->conditions.front();
    second = std::max(second, std::min(first, condition));
    first = std::max(first, condition);
  }
  out.noise = 8 * std::numeric_limits<double>::epsilon() * std::sqrt(first * second);
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) pairs.emplace_back(i, j);
  }
  b.each(pairs.size(), [&](std::size_t p) {
    const auto [i, j] = pairs[p];
    const std::vector<std::string> called = {name + model(i) + " with " + model(j)};
    check_finite(b, problem.crosses[p], called);
    auto k = copy_of(b, problem.crosses[p]);
    check_entries(b, k.view(), deviations[j], deviations[i], called);
    if (problem.regulariser) {
      const FactoredCovariances<B>&x = *out.factors[i], &y = *out.factors[j];
      y.cholesky.factor().solve_left(k.view());
      x.cholesky.factor().solve_right_transposed(k.view());
      check_correlations(b, k.view(), y.conditions, x.conditions, called);
    }
    out.blocks.cross(static_cast<int>(i), static_cast<int>(j)) = std::move(k);
  });
  return out;
}

// All models aligned with the first of the narrowest, whose features are the universe.
template <Backend B>
std::vector<typename B::Matrix> anchored(B& b, const Whitened<B>& given, bool* full) {
  const Blocks<B>& blocks = given.blocks;
  const int n = blocks.models();
  int anchor = 0;
  for (int i = 1; i < n; ++i) {
    if (blocks.width(i) < blocks.width(anchor)) anchor = i;
  }
  const int k = blocks.width(anchor);
  std::vector<typename B::Matrix> q(static_cast<std::size_t>(n));
  std::vector<int> ranks(static_cast<std::size_t>(n), k);
  b.each(q.size(), [&](std::size_t model) {
    const int i = static_cast<int>(model);
    if (i == anchor) {
      q[model] = eye(b, k, k);
      return;
    }
    Polar<B> p =
        i > anchor ? polar(b, blocks.cross(anchor, i).view(), given.noise)
                   : polar(b, transpose_of(b, blocks.cross(i, anchor).view()).view(), given.noise);
    q[model] = std::move(p.q);
    ranks[model] = p.rank.front();
  });
  *full = *std::min_element(ranks.begin(), ranks.end()) == k;
  return q;
}

// The transpose of L_from^-T Q_from Q_to^T L_to^T.
template <Backend B>
typename B::Matrix map_between(B& b, const Whitened<B>& given,
                               const std::vector<typename B::Matrix>& q, std::size_t from,
                               std::size_t to) {
  const auto &right = q[from], &left = q[to];
  if (from == to && left.rows() == left.cols()) return eye(b, left.rows(), left.rows());
  auto out = b.matrix(left.rows(), right.rows());
  b.multiply(false, left.view(), true, right.view(), out.view());
  if (!given.factors.empty()) {
    given.factors[to]->cholesky.factor().multiply_left(out.view());
    given.factors[from]->cholesky.factor().solve_right(out.view());
  }
  return out;
}

template <Backend B>
UniverseSolution<B> solve_universe_problem(B& b, const UniverseProblem& problem,
                                           const std::string& name,
                                           const UniverseOptions& options) {
  const Whitened<B> given = whitened(b, problem, name);
  const int n = given.blocks.models();
  UniverseSolution<B> out;
  for (const auto& factor : given.factors) out.conditions.push_back(factor->conditions.front());

  // The matrix of all blocks says nothing of directions that correlate with no other model's, such
  // as dead units; the alignment with one model leaves them where they are.
  bool full = false;
  std::vector<typename B::Matrix> q = anchored(b, given, &full);
  if (n > 2 && full) {
    auto start = spectral_start(b, given.blocks, q, given.lowest);
    if (!start.empty() &&
        given.blocks.objective(b, views_of(start)) > given.blocks.objective(b, views_of(q))) {
      q = std::move(start);
      out.spectral = true;
    }
  }
  AscentResult found =
      ascend(b, given.blocks, q, {options.tolerance, options.sweeps, given.noise, !full});
  out.objectives = std::move(found.objectives);
  out.rank = found.rank;
  out.converged = found.converged;

  const auto r = static_cast<std::size_t>(options.reference);
  out.maps.resize(q.size());
  out.inverses.resize(q.size());
  b.each(q.size(), [&](std::size_t i) {
    out.maps[i] = map_between(b, given, q, i, r);
    out.inverses[i] = map_between(b, given, q, r, i);
  });
  return out;
}

}  // namespace detail

template <Backend B>
std::vector<UniverseSolution<B>> solve_universe(B& b, const std::vector<UniverseProblem>& problems,
                                                const std::vector<std::string>& names,
                                                const UniverseOptions& options) {
  std::vector<std::size_t> order(problems.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto cost = [&](std::size_t i) {
    double sum = 0;
    for (const ConstView s : problems[i].own) sum += std::pow(s.rows, 3);
    return sum;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t i, std::size_t j) { return cost(i) > cost(j); });
  std::vector<UniverseSolution<B>> out(problems.size());
  const auto solve = [&](std::size_t turn) {
    const std::size_t i = order[turn];
    out[i] = detail::solve_universe_problem(b, problems[i], names[i], options);
  };
  if (static_cast<int>(problems.size()) >= b.threads()) {
    b.each(order.size(), solve);
  } else {  // few problems: the threads share each
    for (std::size_t turn = 0; turn < order.size(); ++turn) solve(turn);
  }
  return out;
}

}  // namespace ccamerge
