// Batched symmetric-definite generalised eigenproblems.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/check.hpp"
#include "solve/backend.hpp"
#include "solve/covariance.hpp"
#include "solve/operands.hpp"

namespace ccamerge {

struct GevpProblem {  // single matrices
  ConstView a;        // (n, n) symmetric
  ConstView b;        // (n, n) symmetric, positive definite once regularised
  int k = 0;          // eigenpairs wanted, the largest, 1 <= k <= n
};

template <Backend B>
struct GevpSolution {
  typename B::Matrix values;   // (k, 1) descending
  typename B::Matrix vectors;  // (k, n), eigenvectors in rows: a C-order (n, k) array's storage
};

// A v = w (B + gamma I) v for each problem, those of equal shapes in lock-step, by the Cholesky
// factor of B + gamma I. A vector's sign makes its largest entry positive. Errors as in solve_cca.
template <Backend B>
std::vector<GevpSolution<B>> solve_gevp(B& b, const std::vector<GevpProblem>& problems,
                                        const std::vector<std::string>& names,
                                        const Regulariser& regulariser);

namespace detail {

// The k largest eigenpairs of the symmetric stack c (n, n), destroyed; descending.
template <Backend B>
struct TopPairs {
  typename B::Matrix values;   // (k, 1)
  typename B::Matrix vectors;  // (n, k)
};

template <Backend B>
TopPairs<B> top_pairs(B& b, typename B::Matrix c, int k, const std::vector<std::string>& names) {
  const int n = c.rows(), count = c.count();
  // Divide and conquer is faster for all of them, and for most.
  const bool all = 2 * static_cast<std::int64_t>(k) > n;
  auto values = b.matrix(all ? n : k, 1, count);
  typename B::Matrix some;
  if (!all) some = b.matrix(n, k, count);
  const std::vector<int> info = all ? b.eigh(true, c.view(), values.view())
                                    : b.eigh_top(c.view(), k, values.view(), some.view());
  for (std::size_t i = 0; i < info.size(); ++i) {
    if (info[i] == 0) continue;
    throw NumericalError(names[i] + "the eigendecomposition did not converge; raise the ridge");
  }
  const ConstView last = all ? ConstView(c.view().block(0, n - k, n, k)) : some.view();
  const ConstView top = values.view().block(values.rows() - k, 0, k, 1);
  TopPairs<B> out{b.matrix(k, 1, count), b.matrix(n, k, count)};
  b.reverse_columns(last, out.vectors.view());
  std::vector<double> host = downloaded(b, top);
  for (auto first = host.begin(); first != host.end(); first += k) std::reverse(first, first + k);
  b.upload(host.data(), out.values.view());
  return out;
}

}  // namespace detail

template <Backend B>
std::vector<GevpSolution<B>> solve_gevp(B& b, const std::vector<GevpProblem>& problems,
                                        const std::vector<std::string>& names,
                                        const Regulariser& regulariser) {
  std::vector<WorkItem> items;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    const GevpProblem& problem = problems[i];
    const int n = problem.a.rows;
    if (2 * static_cast<std::int64_t>(problem.k) > n) check_eigen_order<B>(n, names[i] + "A");
    items.push_back({{n, problem.k, 0},
                     std::pow(n, 3),
                     8 * static_cast<std::size_t>(n) * static_cast<std::size_t>(n)});
  }
  std::vector<GevpSolution<B>> out(problems.size());
  b.groups(items, [&](const std::vector<std::size_t>& group) {
    const int k = problems[group.front()].k;
    std::vector<ConstView> left, right;
    std::vector<std::string> prefixes, left_names, right_names;
    for (const std::size_t i : group) {
      left.push_back(problems[i].a);
      right.push_back(problems[i].b);
      prefixes.push_back(names[i]);
      left_names.push_back(names[i] + "A");
      right_names.push_back(names[i] + "B");
    }
    auto c = checked_covariances(b, left, left_names).s;
    Covariances<B> checked = checked_covariances(b, right, right_names);
    const FactoredCovariances<B> factored =
        factor_covariances(b, cases_of(checked, regulariser, right_names));
    const Triangular<B> factor = factored.cholesky.factor();
    checked.s = {};
    factor.solve_left(c.view());
    factor.solve_right_transposed(c.view());  // L^-1 A L^-T
    b.poll();
    detail::TopPairs<B> top = detail::top_pairs(b, std::move(c), k, prefixes);
    factor.solve_left_transposed(top.vectors.view());
    b.fix_signs(top.vectors.view());
    std::vector<typename B::Matrix> values = b.split(std::move(top.values)),
                                    vectors = b.split(transpose_of(b, top.vectors.view()));
    for (std::size_t i = 0; i < group.size(); ++i) {
      out[group[i]] = {std::move(values[i]), std::move(vectors[i])};
    }
  });
  return out;
}

}  // namespace ccamerge
