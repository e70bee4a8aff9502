#include "spectral.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "blas.hpp"
#include "parallel.hpp"
#include "polar.hpp"
#include "triangular.hpp"

namespace ccamerge {
namespace {

// The ascent corrects what is left: more rounds were measured to change its end and length little.
constexpr int kRounds = 2;
constexpr int kDegree = 4;  // keeps the Gram matrices of a round's result far from singular

// Each model's rows of a stack.
std::vector<ConstView> rows_of(const Blocks& blocks, ConstView stack) {
  std::vector<ConstView> out;
  for (int i = 0, at = 0; i < blocks.models(); at += blocks.width(i), ++i) {
    out.push_back(stack.block(at, 0, blocks.width(i), stack.cols));
  }
  return out;
}

// out = the matrix of all blocks times x.
void apply(const Blocks& blocks, ConstView x, View out) {
  const auto rows = rows_of(blocks, x);
  for (int i = 0, at = 0; i < blocks.models(); at += blocks.width(i), ++i) {
    const View target = out.block(at, 0, blocks.width(i), out.cols);
    blocks.pull(i, 0, blocks.models(), rows, target);
    for (int j = 0; j < target.cols; ++j) {
      for (int r = 0; r < target.rows; ++r) target.at(r, j) *= blocks.weight(i);
    }
    poll_interrupt();
  }
}

// Orthonormal columns by the Cholesky factor of the Gram matrix; false where that is singular.
bool orthonormalise(View x) {
  Matrix gram(x.cols, x.cols);
  gram_lower(1.0, x, gram.view());
  const Cholesky factor(std::move(gram));
  if (factor.info() != 0) return false;
  factor.solve_right_transposed(x);
  return true;
}

// The smallest eigenvalue of x^T y, symmetric up to rounding; below every eigenvalue wanted.
double smallest_ritz_value(ConstView x, ConstView y) {
  Matrix projected(x.cols, x.cols);
  multiply(true, x, false, y, projected.view());
  std::vector<double> values(static_cast<std::size_t>(x.cols));
  const int info = blas::syevd(false, x.cols, projected.data(), x.cols, values.data());
  return info == 0 ? values.front() : 0.0;
}

}  // namespace

std::vector<Matrix> spectral_start(const Blocks& blocks, const std::vector<Matrix>& guess,
                                   double lowest) {
  int order = 0;
  for (int i = 0; i < blocks.models(); ++i) order += blocks.width(i);
  const int k = guess.front().cols();
  Matrix x(order, k), y(order, k), z(order, k);
  for (int i = 0, at = 0; i < blocks.models(); at += blocks.width(i), ++i) {
    const ConstView from = guess[static_cast<std::size_t>(i)].view();
    for (int j = 0; j < k; ++j) {
      for (int r = 0; r < from.rows; ++r) x.at(at + r, j) = blocks.weight(i) * from.at(r, j);
    }
  }
  if (!orthonormalise(x.view())) return {};
  for (int round = 0; round < kRounds; ++round) {
    apply(blocks, x.view(), y.view());
    const double cut = smallest_ritz_value(x.view(), y.view());
    if (!(cut > lowest)) return {};
    const double centre = 0.5 * (cut + lowest), half = 0.5 * (cut - lowest);
    for (std::size_t e = 0; e < y.size(); ++e) {
      y.data()[e] = (y.data()[e] - centre * x.data()[e]) / half;
    }
    for (int degree = 2; degree <= kDegree; ++degree) {  // x, y <- y, 2 (M - c) / h y - x
      apply(blocks, y.view(), z.view());
      for (std::size_t e = 0; e < y.size(); ++e) {
        x.data()[e] = 2 / half * (z.data()[e] - centre * y.data()[e]) - x.data()[e];
      }
      std::swap(x, y);
    }
    std::swap(x, y);
    if (!orthonormalise(x.view())) return {};
  }
  std::vector<Matrix> out;
  const auto rows = rows_of(blocks, x.view());
  for (int i = 0; i < blocks.models(); ++i) {
    if (blocks.weight(i) == 0) {  // the eigenvectors know nothing of it
      out.push_back(copy_of(guess[static_cast<std::size_t>(i)].view()));
      continue;
    }
    Polar p = polar(copy_of(rows[static_cast<std::size_t>(i)]));
    if (p.rank < k) return {};
    out.push_back(std::move(p.q));
  }
  return out;
}

}  // namespace ccamerge
