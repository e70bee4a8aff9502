// The solver's backend on a CUDA device; see solve/backend.hpp for what its primitives do. Products
// and eigendecompositions are cuBLAS's and cuSOLVER's, the rest own kernels.
#pragma once

#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "cuda/libraries.hpp"
#include "cuda/memory.hpp"
#include "cuda/solve/cholesky_block.hpp"
#include "solve/backend.hpp"

namespace ccamerge::cuda {

// Device memory that a call has done with, kept for its next need of the same size.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  explicit Pool(Allocate allocate) : allocate_(std::move(allocate)) {}
  // Goes back to the pool, if that still lives, when the last copy of the pointer is gone.
  std::shared_ptr<Buffer> take(std::size_t bytes);
  // Gives back what is not in use.
  void clear() { idle_.clear(); }

 private:
  Allocate allocate_;
  std::multimap<std::size_t, Buffer> idle_;
};

// An owning stack in device memory. Members of a stack that was split share its memory.
class Stack {
 public:
  Stack() = default;
  Stack(std::shared_ptr<Buffer> memory, std::size_t offset, int rows, int cols, int count)
      : memory_(std::move(memory)), offset_(offset), rows_(rows), cols_(cols), count_(count) {}
  Stack(Stack&&) = default;
  Stack& operator=(Stack&&) = default;

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  int count() const { return count_; }
  bool empty() const { return rows_ == 0 || cols_ == 0 || count_ == 0; }
  View view() { return of<View>(); }
  ConstView view() const { return of<ConstView>(); }

  const Buffer& memory() const { return *memory_; }
  std::size_t offset() const { return offset_; }  // of the first element in the memory, in bytes

 private:
  friend class Gpu;

  template <class V>
  V of() const {
    double* const data = memory_ ? reinterpret_cast<double*>(memory_->data + offset_) : nullptr;
    return {data,   rows_,
            cols_,  rows_ > 0 ? rows_ : 1,
            count_, static_cast<std::ptrdiff_t>(rows_) * cols_};
  }

  std::shared_ptr<Buffer> memory_;
  std::size_t offset_ = 0;
  int rows_ = 0, cols_ = 0, count_ = 0;
};

// Serves one call, on the calling thread.
class Gpu {
 public:
  using Matrix = Stack;
  struct Info {
    std::shared_ptr<Buffer> memory;
    int count = 0;
  };
  static constexpr int most_eigenvectors = std::numeric_limits<int>::max();
  static constexpr int block = kCholeskyBlock;
  static constexpr int panel = std::numeric_limits<int>::max();

  // Groups hold up to `most_bytes` at a time, unless one item needs more.
  Gpu(const Allocate& allocate, cudaStream_t stream, std::size_t most_bytes = kMostBytes);

  Matrix matrix(int rows, int cols, int count = 1);
  Matrix stack(const std::vector<ConstView>& matrices);
  std::vector<Matrix> split(Matrix stack);
  void upload(const double* host, View to);
  void download(ConstView from, double* host);

  void multiply(bool trans_a, ConstView a, bool trans_b, ConstView b, View c, double alpha = 1.0,
                double beta = 0.0);
  void gram_lower(double alpha, ConstView a, View c);
  void downdate_lower(ConstView a, View c);

  Info info(int count);
  void factor_block(View a, View inverse, int at, Info& info);
  bool failed_all(const Info&) const { return false; }
  std::vector<int> read(const Info& info);

  void combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& beta,
               ConstView b, const Coefficients& diagonal = 0.0, Part part = Part::full);
  void combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& diagonal = 0.0,
               Part part = Part::full);
  void combine(View c, const Coefficients& diagonal, Part part = Part::full);
  void transpose(ConstView from, View to);
  void mirror_lower(View a);
  void reverse_columns(ConstView from, View to);
  void scale_columns(View a, const std::vector<double>& factors);
  void fix_signs(View a);
  void gather(ConstView from, const std::vector<int>& rows, const std::vector<int>& cols, View to);
  void scatter(ConstView from, const std::vector<int>& rows, const std::vector<int>& cols, View to);

  std::vector<ColumnSums> column_sums(ConstView a, Part part = Part::full);
  std::vector<double> inner(ConstView a, ConstView b);
  std::vector<Symmetry> symmetrise(View a);

  std::vector<int> eigh(bool vectors, View a, View w);
  std::vector<int> eigh_top(View a, int k, View w, View z);

  void groups(const std::vector<WorkItem>& items, const GroupTask& task);
  void each(std::size_t count, const Task& task);
  int threads() const { return 1; }
  void poll();

 private:
  static constexpr std::size_t kMostBytes = std::size_t{2} << 30;

  cudaStream_t stream() const { return handles_.stream(); }
  std::shared_ptr<Buffer> zeros(std::size_t bytes);
  template <class T>
  std::shared_ptr<Buffer> uploaded(const std::vector<T>& values);
  template <class T>
  std::vector<T> downloaded(const Buffer& from, std::size_t count);

  std::shared_ptr<Pool> pool_;
  Handles handles_;
  std::size_t most_bytes_;
};

}  // namespace ccamerge::cuda
