// Column-major float64 storage and views. A NumPy array in C order is the transpose of what these
// see, so the bindings hand over (and take back) transposes instead of copying.
#pragma once

#include <cstddef>
#include <utility>

#include "buffers.hpp"

namespace ccamerge {

// Not owning. at(i, j) is row i, column j.
template <class T>
struct BasicView {
  T* data = nullptr;
  int rows = 0, cols = 0, ld = 1;

  T* col(int j) const { return data + static_cast<std::ptrdiff_t>(j) * ld; }
  T& at(int i, int j) const { return col(j)[i]; }
  BasicView block(int i, int j, int m, int n) const { return {col(j) + i, m, n, ld}; }
  operator BasicView<const T>() const { return {data, rows, cols, ld}; }
};
using View = BasicView<double>;
using ConstView = BasicView<const double>;

// Owning, contiguous, uninitialised until written.
class Matrix {
 public:
  Matrix() = default;
  Matrix(int rows, int cols) : rows_(rows), cols_(cols), data_(acquire_buffer(size())) {}
  Matrix(Matrix&& other) noexcept { swap(other); }
  Matrix& operator=(Matrix&& other) noexcept {
    Matrix(std::move(other)).swap(*this);
    return *this;
  }
  ~Matrix() { release_buffer(data_, size()); }

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  std::size_t size() const {
    return static_cast<std::size_t>(rows_) * static_cast<std::size_t>(cols_);
  }
  bool empty() const { return size() == 0; }
  double* data() { return data_; }
  const double* data() const { return data_; }
  double& at(int i, int j) { return view().at(i, j); }
  double at(int i, int j) const { return view().at(i, j); }
  View view() { return {data_, rows_, cols_, rows_ > 0 ? rows_ : 1}; }
  ConstView view() const { return {data_, rows_, cols_, rows_ > 0 ? rows_ : 1}; }

  // Gives the storage away, to be freed by std::free, for an array that outlives this object.
  double* release() {
    rows_ = cols_ = 0;
    return std::exchange(data_, nullptr);
  }

 private:
  void swap(Matrix& other) noexcept {
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    std::swap(data_, other.data_);
  }

  int rows_ = 0, cols_ = 0;
  double* data_ = nullptr;
};

Matrix copy_of(ConstView a);
Matrix transpose_of(ConstView a);
void transpose(ConstView from, View to);  // to = from^T; they must not overlap
// Ones on the main diagonal, also of a rectangle.
Matrix eye(int rows, int cols);

void set_zero(View a);
// Copies the lower triangle of a square matrix over the upper one.
void mirror_lower(View a);
double frobenius_norm(ConstView a);

// c = alpha op(a) op(b) + beta c
void multiply(bool trans_a, ConstView a, bool trans_b, ConstView b, View c, double alpha = 1.0,
              double beta = 0.0);

}  // namespace ccamerge
