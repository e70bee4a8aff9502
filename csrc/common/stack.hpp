// Views of stacks: equal-shaped, column-major float64 matrices in some backend's memory. A NumPy
// array in C order is the transpose of what these see, so the bindings hand over (and take back)
// transposes instead of copying.
#pragma once

#include <concepts>
#include <cstddef>

namespace ccamerge {

// Not owning. at(i, j) is row i, column j of the first member; the others lie `stride` elements
// apart. An input's stride may be 0: every member is then the same matrix.
template <class T>
struct BasicView {
  T* data = nullptr;
  int rows = 0, cols = 0, ld = 1;
  int count = 1;
  std::ptrdiff_t stride = 0;

  T* col(int j) const { return data + static_cast<std::ptrdiff_t>(j) * ld; }
  T& at(int i, int j) const { return col(j)[i]; }
  // Of every member.
  BasicView block(int i, int j, int m, int n) const {
    return {col(j) + i, m, n, ld, count, stride};
  }
  BasicView member(int k) const { return {data + k * stride, rows, cols, ld}; }
  // A template, so that nvcc does not warn of a conversion of const views to themselves.
  template <std::same_as<const T> U>
  operator BasicView<U>() const {
    return {data, rows, cols, ld, count, stride};
  }
};
using View = BasicView<double>;
using ConstView = BasicView<const double>;

// The one matrix as a stack of `count`, without copies; an input only.
inline ConstView repeated(ConstView a, int count) {
  return {a.data, a.rows, a.cols, a.ld, count, 0};
}

}  // namespace ccamerge
