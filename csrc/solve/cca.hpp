// Canonical correlation analysis of many pairs of feature spaces, and the maps between them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "solve/backend.hpp"
#include "solve/covariance.hpp"
#include "solve/operands.hpp"
#include "solve/plausible.hpp"
#include "solve/polar.hpp"
#include "solve/shared_covariances.hpp"
#include "solve/thin_svd.hpp"

namespace ccamerge {

// Second moments of p features X (the reference) and q features Y; single matrices.
struct CcaProblem {
  ConstView sxx;  // (p, p) symmetric
  ConstView syy;  // (q, q) symmetric
  ConstView syx;  // (q, p), the transpose of the cross moment X^T Y
};

struct CcaOptions {
  bool correlations = false;
  bool weights = false;  // implies the correlations
};

// With C = S + gamma I = L L^T on each side, K = Lx^-1 Sxy Ly^-T = U S V^T and the polar factor
// P = U V^T: everything is stored transposed, which a C-order array reads back as named.
template <Backend B>
struct CcaSolution {
  typename B::Matrix map;           // (p, q), the transpose of Ly^-T P^T Lx^T
  typename B::Matrix inverse;       // (q, p), the transpose of Lx^-T P Ly^T
  typename B::Matrix correlations;  // (k, 1) descending, k = min(p, q), on request
  typename B::Matrix x_weights;     // (k, p), the transpose of Lx^-T U, on request
  typename B::Matrix y_weights;     // (k, q), the transpose of Ly^-T V, on request
  int rank = 0;                     // of K
  double x_condition = 0, y_condition = 0;
  PolarMethod method = PolarMethod::qdwh;
};

// Every problem with every regulariser, problem-major; those of equal shapes in lock-step. A
// covariance that several problems share (by address) is checked and factored once. `names` are as
// in "problems[3]: ", one for each problem, and start the messages of errors: std::invalid_argument
// for non-finite or asymmetric input and cross moments that no data can have, NumericalError for
// covariances too ill-conditioned to solve with.
//
// Source: Horoi et al., "Harmony in Diversity: Merging Neural Networks with Canonical Correlation
// Analysis", ICML 2024; any square root of the covariances gives the same map.
template <Backend B>
std::vector<CcaSolution<B>> solve_cca(B& b, const std::vector<CcaProblem>& problems,
                                      const std::vector<std::string>& names,
                                      const std::vector<Regulariser>& regularisers,
                                      const CcaOptions& options);

namespace detail {

template <class M, class S>
void hand_out(std::vector<M> members, std::vector<S>& to, M S::* field) {
  for (std::size_t k = 0; k < members.size(); ++k) to[k].*field = std::move(members[k]);
}

// One solution for each member of k, the cross moments (q, p), called so, given the factors of both
// sides.
template <Backend B>
std::vector<CcaSolution<B>> solve_cca_stack(B& b, typename B::Matrix k, const SharedFactors<B>& x,
                                            const SharedFactors<B>& y, const CcaOptions& options,
                                            const std::vector<std::string>& called) {
  using Solution = CcaSolution<B>;
  std::vector<Solution> out(x.conditions().size());
  check_entries(b, k.view(), y.deviations(), x.deviations(), called);
  y.factor().solve_left(k.view());
  x.factor().solve_right_transposed(k.view());  // K^T
  check_correlations(b, k.view(), y.conditions(), x.conditions(), called);
  b.poll();

  // K = Lx^-1 Sxy Ly^-T carries the rounding errors of Sxy, enlarged by both inverses; singular
  // values below that are noise.
  std::vector<double> noise;
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i].x_condition = x.conditions()[i];
    out[i].y_condition = y.conditions()[i];
    noise.push_back(8 * std::numeric_limits<double>::epsilon() *
                    std::sqrt(out[i].x_condition * out[i].y_condition));
  }
  Polar<B> p = polar(b, k.view(), noise);
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i].rank = p.rank[i];
    out[i].method = p.method[i];
  }
  b.poll();

  if (options.correlations || options.weights) {
    // What rounding errors of the moments have made larger than a correlation can be is 1.
    ThinSvd<B> svd = svd_from_polar(b, k.view(), p.q.view(), options.weights, 1.0);
    hand_out(b.split(std::move(svd.s)), out, &Solution::correlations);
    if (options.weights) {
      auto x_weights = transpose_of(b, svd.v.view()), y_weights = transpose_of(b, svd.u.view());
      x.factor().solve_right(x_weights.view());
      y.factor().solve_right(y_weights.view());
      hand_out(b.split(std::move(x_weights)), out, &Solution::x_weights);
      hand_out(b.split(std::move(y_weights)), out, &Solution::y_weights);
    }
  }
  k = {};
  auto map = transpose_of(b, p.q.view());
  x.factor().multiply_left(map.view());
  y.factor().solve_right(map.view());
  y.factor().multiply_left(p.q.view());
  x.factor().solve_right(p.q.view());
  hand_out(b.split(std::move(map)), out, &Solution::map);
  hand_out(b.split(std::move(p.q)), out, &Solution::inverse);
  return out;
}

}  // namespace detail

template <Backend B>
std::vector<CcaSolution<B>> solve_cca(B& b, const std::vector<CcaProblem>& problems,
                                      const std::vector<std::string>& names,
                                      const std::vector<Regulariser>& regularisers,
                                      const CcaOptions& options) {
  for (std::size_t i = 0; options.weights && i < problems.size(); ++i) {
    check_eigen_order<B>(std::min(problems[i].syx.rows, problems[i].syx.cols), names[i] + "Sxy");
  }
  SharedCovariances<B> covariances;
  std::vector<std::size_t> x_side, y_side;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    x_side.push_back(covariances.add(problems[i].sxx, names[i] + "Sxx"));
    y_side.push_back(covariances.add(problems[i].syy, names[i] + "Syy"));
  }
  covariances.factor(b, regularisers);

  std::vector<WorkItem> items;
  const std::size_t values = regularisers.size();
  for (std::size_t task = 0; task < problems.size() * values; ++task) {
    const ConstView s = problems[task / values].syx;
    const double size = static_cast<double>(s.rows) * s.cols;
    items.push_back({{s.rows, s.cols, 0},
                     size * (s.rows + s.cols),
                     10 * static_cast<std::size_t>(size) + covariances.elements(s.rows) +
                         covariances.elements(s.cols)});
  }
  std::vector<CcaSolution<B>> out(items.size());
  b.groups(items, [&](const std::vector<std::size_t>& group) {
    std::vector<ConstView> crosses;
    std::vector<std::string> called;
    std::vector<typename SharedCovariances<B>::Which> x, y;
    for (const std::size_t task : group) {
      const std::size_t i = task / values;
      crosses.push_back(problems[i].syx);
      called.push_back(names[i] + "Sxy");
      x.push_back({x_side[i], task % values});
      y.push_back({y_side[i], task % values});
    }
    auto k = b.stack(crosses);
    check_finite(b, k.view(), called);
    auto solutions = detail::solve_cca_stack(b, std::move(k), covariances.gather(b, x),
                                             covariances.gather(b, y), options, called);
    for (std::size_t i = 0; i < group.size(); ++i) out[group[i]] = std::move(solutions[i]);
  });
  return out;
}

}  // namespace ccamerge
