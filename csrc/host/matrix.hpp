// Column-major float64 storage in host memory, and what is done with a single matrix there.
#pragma once

#include <cstddef>
#include <utility>

#include "common/stack.hpp"
#include "host/buffers.hpp"

namespace ccamerge {

// A stack of matrices: owning, contiguous, uninitialised until written.
class Matrix {
 public:
  Matrix() = default;
  Matrix(int rows, int cols, int count = 1)
      : rows_(rows), cols_(cols), count_(count), data_(acquire_buffer(size())) {}
  Matrix(Matrix&& other) noexcept { swap(other); }
  Matrix& operator=(Matrix&& other) noexcept {
    Matrix(std::move(other)).swap(*this);
    return *this;
  }
  ~Matrix() { release_buffer(data_, size()); }

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  int count() const { return count_; }
  std::size_t size() const {  // of all members
    return static_cast<std::size_t>(rows_) * static_cast<std::size_t>(cols_) *
           static_cast<std::size_t>(count_);
  }
  bool empty() const { return size() == 0; }
  double* data() { return data_; }
  const double* data() const { return data_; }
  double& at(int i, int j) { return view().at(i, j); }
  double at(int i, int j) const { return view().at(i, j); }
  View view() { return {data_, rows_, cols_, rows_ > 0 ? rows_ : 1, count_, stride()}; }
  ConstView view() const { return {data_, rows_, cols_, rows_ > 0 ? rows_ : 1, count_, stride()}; }

  // Gives the storage away, to be freed by std::free, for an array that outlives this object.
  double* release() {
    rows_ = cols_ = 0;
    return std::exchange(data_, nullptr);
  }

 private:
  std::ptrdiff_t stride() const { return static_cast<std::ptrdiff_t>(rows_) * cols_; }
  void swap(Matrix& other) noexcept {
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    std::swap(count_, other.count_);
    std::swap(data_, other.data_);
  }

  int rows_ = 0, cols_ = 0, count_ = 1;
  double* data_ = nullptr;
};

// Of a single matrix, as everything below.
Matrix copy_of(ConstView a);
void copy(ConstView from, View to);
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
