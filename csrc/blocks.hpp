// Whitened cross moments of many models, and the products with them that universe solves are made
// of.
#pragma once

#include <cstddef>
#include <vector>

#include "matrix.hpp"

namespace ccamerge {

// K_ji (d_j, d_i) for i < j, in the order (0, 1), (0, 2), ..., (N-2, N-1); K_ij is the transpose.
class Blocks {
 public:
  // `weights` of the models, not negative.
  Blocks(std::vector<int> widths, std::vector<double> weights);

  int models() const { return static_cast<int>(widths_.size()); }
  int width(int i) const { return widths_[static_cast<std::size_t>(i)]; }
  double weight(int i) const { return weights_[static_cast<std::size_t>(i)]; }
  Matrix& cross(int i, int j) { return cross_[index(i, j)]; }  // i < j
  const Matrix& cross(int i, int j) const { return cross_[index(i, j)]; }

  // out = sum of w_j K_ij q[j] over j in [first, last) except i, by columns in parallel: the result
  // does not depend on the number of threads.
  void pull(int i, int first, int last, const std::vector<ConstView>& q, View out) const;

  // sum over i < j of w_i w_j tr(q[i]^T K_ij q[j]).
  double objective(const std::vector<ConstView>& q) const;

 private:
  std::size_t index(int i, int j) const;

  std::vector<int> widths_;
  std::vector<double> weights_;
  std::vector<Matrix> cross_;
};

double inner(ConstView a, ConstView b);  // tr(a^T b)

std::vector<ConstView> views_of(const std::vector<Matrix>& matrices);

}  // namespace ccamerge
