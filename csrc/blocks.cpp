#include "blocks.hpp"

#include <algorithm>
#include <utility>

#include "parallel.hpp"

namespace ccamerge {
namespace {

constexpr int kPanel = 128;  // columns of a product that make one task

}  // namespace

Blocks::Blocks(std::vector<int> widths, std::vector<double> weights)
    : widths_(std::move(widths)),
      weights_(std::move(weights)),
      cross_(widths_.size() * (widths_.size() - 1) / 2) {}

std::size_t Blocks::index(int i, int j) const {
  const int before = i * models() - i * (i + 1) / 2;  // pairs whose first model is before i
  return static_cast<std::size_t>(before + j - i - 1);
}

void Blocks::pull(int i, int first, int last, const std::vector<ConstView>& q, View out) const {
  const int panels = (out.cols + kPanel - 1) / kPanel;
  parallel_for(static_cast<std::size_t>(panels), [&](std::size_t panel) {
    const int at = static_cast<int>(panel) * kPanel, n = std::min(kPanel, out.cols - at);
    const View target = out.block(0, at, out.rows, n);
    double keep = 0;  // of the target: the first product overwrites it
    for (int j = first; j < last; ++j) {
      if (j == i || weight(j) == 0) continue;
      const ConstView right = q[static_cast<std::size_t>(j)].block(0, at, width(j), n);
      const Matrix& k = cross_[j < i ? index(j, i) : index(i, j)];
      multiply(j > i, k.view(), false, right, target, weight(j), keep);
      keep = 1;
    }
    if (keep == 0) set_zero(target);
  });
}

double Blocks::objective(const std::vector<ConstView>& q) const {
  double sum = 0;
  for (int i = 1; i < models(); ++i) {
    const ConstView own = q[static_cast<std::size_t>(i)];
    Matrix lower(own.rows, own.cols);
    pull(i, 0, i, q, lower.view());
    sum += weight(i) * inner(own, lower.view());
  }
  return sum;
}

double inner(ConstView a, ConstView b) {
  double sum = 0;
  for (int j = 0; j < a.cols; ++j) {
    double column = 0;
    for (int i = 0; i < a.rows; ++i) column += a.at(i, j) * b.at(i, j);
    sum += column;
  }
  return sum;
}

std::vector<ConstView> views_of(const std::vector<Matrix>& matrices) {
  std::vector<ConstView> out;
  for (const Matrix& m : matrices) out.push_back(m.view());
  return out;
}

}  // namespace ccamerge
