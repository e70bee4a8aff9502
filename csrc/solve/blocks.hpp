// Whitened cross moments of many models, and the products with them that universe solves are made
// of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "solve/backend.hpp"

namespace ccamerge {

// K_ji (d_j, d_i) for i < j, in the order (0, 1), (0, 2), ..., (N-2, N-1); K_ij is the transpose.
template <Backend B>
class Blocks {
 public:
  using Matrix = typename B::Matrix;

  // `weights` of the models, not negative.
  Blocks(std::vector<int> widths, std::vector<double> weights)
      : widths_(std::move(widths)),
        weights_(std::move(weights)),
        cross_(widths_.size() * (widths_.size() - 1) / 2) {}

  int models() const { return static_cast<int>(widths_.size()); }
  int width(int i) const { return widths_[static_cast<std::size_t>(i)]; }
  double weight(int i) const { return weights_[static_cast<std::size_t>(i)]; }
  Matrix& cross(int i, int j) { return cross_[index(i, j)]; }  // i < j
  const Matrix& cross(int i, int j) const { return cross_[index(i, j)]; }

  // out = sum of w_j K_ij q[j] over j in [first, last) except i, by columns in parallel: the result
  // does not depend on the number of threads.
  void pull(B& b, int i, int first, int last, const std::vector<ConstView>& q, View out) const;

  // sum over i < j of w_i w_j tr(q[i]^T K_ij q[j]).
  double objective(B& b, const std::vector<ConstView>& q) const;

 private:
  std::size_t index(int i, int j) const {
    const int before = i * models() - i * (i + 1) / 2;  // pairs whose first model is before i
    return static_cast<std::size_t>(before + j - i - 1);
  }

  std::vector<int> widths_;
  std::vector<double> weights_;
  std::vector<Matrix> cross_;
};

template <class M>
std::vector<ConstView> views_of(const std::vector<M>& matrices) {
  std::vector<ConstView> out;
  for (const M& m : matrices) out.push_back(m.view());
  return out;
}

template <Backend B>
void Blocks<B>::pull(B& b, int i, int first, int last, const std::vector<ConstView>& q,
                     View out) const {
  const int panels = out.cols / B::panel + (out.cols % B::panel != 0);
  b.each(static_cast<std::size_t>(panels), [&](std::size_t panel) {
    const int at = static_cast<int>(panel) * B::panel, n = std::min(int{B::panel}, out.cols - at);
    const View target = out.block(0, at, out.rows, n);
    double keep = 0;  // of the target: the first product overwrites it
    for (int j = first; j < last; ++j) {
      if (j == i || weight(j) == 0) continue;
      const ConstView right = q[static_cast<std::size_t>(j)].block(0, at, width(j), n);
      const Matrix& k = cross_[j < i ? index(j, i) : index(i, j)];
      b.multiply(j > i, k.view(), false, right, target, weight(j), keep);
      keep = 1;
    }
    if (keep == 0) b.combine(target, 0.0);
  });
}

template <Backend B>
double Blocks<B>::objective(B& b, const std::vector<ConstView>& q) const {
  double sum = 0;
  for (int i = 1; i < models(); ++i) {
    const ConstView own = q[static_cast<std::size_t>(i)];
    auto lower = b.matrix(own.rows, own.cols);
    pull(b, i, 0, i, q, lower.view());
    sum += weight(i) * b.inner(own, lower.view()).front();
  }
  return sum;
}

}  // namespace ccamerge
