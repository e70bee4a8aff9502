// A start for the block polar ascent: the leading eigenvectors of the matrix of all blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "solve/backend.hpp"
#include "solve/blocks.hpp"
#include "solve/operands.hpp"
#include "solve/polar.hpp"
#include "solve/triangular.hpp"

namespace ccamerge {

// Matrices q[i] (d_i, k) with orthonormal columns, k = min d_i: approximate leading k eigenvectors
// of the matrix of all w_i w_j K_ij, with zeros on its diagonal, each model's rows rounded to their
// polar factor. From `guess`, by subspace iteration with Chebyshev polynomials (Saad 1984; Zhou,
// Saad, Tiago & Chelikowsky 2006); only products with the blocks are formed. `lowest` bounds the
// eigenvalues from below. Empty if the iteration breaks down or leaves a model's rows deficient.
template <Backend B>
std::vector<typename B::Matrix> spectral_start(B& b, const Blocks<B>& blocks,
                                               const std::vector<typename B::Matrix>& guess,
                                               double lowest);

namespace detail {

// The ascent corrects what is left: more rounds were measured to change its end and length little.
inline constexpr int kRounds = 2;
inline constexpr int kDegree = 4;  // keeps the Gram matrices of a round's result far from singular

// Each model's rows of all models' rows.
template <Backend B, class V>
std::vector<V> rows_of(const Blocks<B>& blocks, V all) {
  std::vector<V> out;
  for (int i = 0, at = 0; i < blocks.models(); at += blocks.width(i), ++i) {
    out.push_back(all.block(at, 0, blocks.width(i), all.cols));
  }
  return out;
}

// out = the matrix of all blocks times x.
template <Backend B>
void apply(B& b, const Blocks<B>& blocks, ConstView x, View out) {
  const std::vector<ConstView> rows = rows_of(blocks, x);
  const std::vector<View> targets = rows_of(blocks, out);
  for (int i = 0; i < blocks.models(); ++i) {
    const View target = targets[static_cast<std::size_t>(i)];
    blocks.pull(b, i, 0, blocks.models(), rows, target);
    b.combine(target, blocks.weight(i), target);
    b.poll();
  }
}

// Orthonormal columns by the Cholesky factor of the Gram matrix; false where that is singular.
template <Backend B>
bool orthonormalise(B& b, View x) {
  auto gram = b.matrix(x.cols, x.cols);
  b.gram_lower(1.0, x, gram.view());
  const Cholesky<B> cholesky(b, std::move(gram));
  if (cholesky.info().front() != 0) return false;
  cholesky.factor().solve_right_transposed(x);
  return true;
}

// The smallest eigenvalue of x^T y, symmetric up to rounding; below every eigenvalue wanted.
template <Backend B>
double smallest_ritz_value(B& b, ConstView x, ConstView y) {
  auto projected = b.matrix(x.cols, x.cols), values = b.matrix(x.cols, 1);
  b.multiply(true, x, false, y, projected.view());
  const int info = b.eigh(false, projected.view(), values.view()).front();
  return info == 0 ? downloaded(b, values.view()).front() : 0.0;
}

}  // namespace detail

template <Backend B>
std::vector<typename B::Matrix> spectral_start(B& b, const Blocks<B>& blocks,
                                               const std::vector<typename B::Matrix>& guess,
                                               double lowest) {
  int order = 0;
  for (int i = 0; i < blocks.models(); ++i) order += blocks.width(i);
  const int k = guess.front().cols();
  auto x = b.matrix(order, k), y = b.matrix(order, k), z = b.matrix(order, k);
  const std::vector<View> parts = detail::rows_of(blocks, x.view());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    b.combine(parts[i], blocks.weight(static_cast<int>(i)), guess[i].view());
  }
  if (!detail::orthonormalise(b, x.view())) return {};
  for (int round = 0; round < detail::kRounds; ++round) {
    detail::apply(b, blocks, x.view(), y.view());
    const double cut = detail::smallest_ritz_value(b, x.view(), y.view());
    if (!(cut > lowest)) return {};
    const double centre = 0.5 * (cut + lowest), half = 0.5 * (cut - lowest);
    b.combine(y.view(), 1 / half, y.view(), -centre / half, x.view());
    for (int degree = 2; degree <= detail::kDegree; ++degree) {  // x, y <- y, 2 (M - c) / h y - x
      detail::apply(b, blocks, y.view(), z.view());
      b.combine(z.view(), 1.0, z.view(), -centre, y.view());
      b.combine(x.view(), 2 / half, z.view(), -1.0, x.view());
      std::swap(x, y);
    }
    std::swap(x, y);
    if (!detail::orthonormalise(b, x.view())) return {};
  }
  std::vector<typename B::Matrix> out;
  const auto rows = detail::rows_of(blocks, ConstView(x.view()));
  for (int i = 0; i < blocks.models(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (blocks.weight(i) == 0) {  // the eigenvectors know nothing of it
      out.push_back(copy_of(b, guess[at].view()));
      continue;
    }
    Polar<B> p = polar(b, rows[at]);
    if (p.rank.front() < k) return {};
    out.push_back(std::move(p.q));
  }
  return out;
}

}  // namespace ccamerge
