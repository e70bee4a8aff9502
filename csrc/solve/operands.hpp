// Matrices made from matrices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "solve/backend.hpp"

namespace ccamerge {

template <Backend B>
typename B::Matrix copy_of(B& b, ConstView a) {
  auto out = b.matrix(a.rows, a.cols, a.count);
  b.combine(out.view(), 1.0, a);
  return out;
}

template <Backend B>
typename B::Matrix transpose_of(B& b, ConstView a) {
  auto out = b.matrix(a.cols, a.rows, a.count);
  b.transpose(a, out.view());
  return out;
}

// Ones on the main diagonal, also of a rectangle.
template <Backend B>
typename B::Matrix eye(B& b, int rows, int cols, int count = 1) {
  auto out = b.matrix(rows, cols, count);
  b.combine(out.view(), 1.0);
  return out;
}

template <Backend B>
std::vector<double> downloaded(B& b, ConstView a) {
  std::vector<double> out(static_cast<std::size_t>(a.rows) * static_cast<std::size_t>(a.cols) *
                          static_cast<std::size_t>(a.count));
  b.download(a, out.data());
  return out;
}

// The elements with these indices.
template <class T>
std::vector<T> picked(const std::vector<T>& from, const std::vector<std::size_t>& indices) {
  std::vector<T> out;
  for (const std::size_t i : indices) out.push_back(from[i]);
  return out;
}

// Single matrices of one shape as a stack, copied only where they are neither one nor the same.
template <Backend B>
class Gathered {
 public:
  Gathered(B& b, const std::vector<ConstView>& members) : view_(members.front()) {
    if (members.size() == 1) return;
    const bool same = std::all_of(members.begin(), members.end(),
                                  [&](ConstView m) { return m.data == view_.data; });
    if (same) {
      view_ = repeated(view_, static_cast<int>(members.size()));
    } else {
      copies_ = b.stack(members);
      view_ = copies_.view();
    }
  }

  ConstView view() const { return view_; }

 private:
  typename B::Matrix copies_;
  ConstView view_;
};

}  // namespace ccamerge
