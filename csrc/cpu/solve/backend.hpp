// The CPU backend of the solving algorithms: BLAS and LAPACK on one thread, problems beside each
// other on the core's threads.
#pragma once

#include <cstddef>
#include <vector>

#include "host/blas.hpp"
#include "host/buffers.hpp"
#include "host/matrix.hpp"
#include "solve/backend.hpp"

namespace ccamerge {

// The primitives are documented by the concept. Buffers are recycled while a backend lives.
class Cpu {
 public:
  using Matrix = ccamerge::Matrix;
  using Info = std::vector<int>;
  static constexpr int block = 32;  // larger ones leave too little to products
  static constexpr int most_eigenvectors = blas::kMostEigenvectors;
  static constexpr int panel = 128;  // narrower products run slower

  Matrix matrix(int rows, int cols, int count = 1) { return {rows, cols, count}; }
  Matrix stack(const std::vector<ConstView>& members);
  std::vector<Matrix> split(Matrix stack);
  void upload(const double* host, View to);
  void download(ConstView from, double* host);

  void multiply(bool trans_a, ConstView a, bool trans_b, ConstView b, View c, double alpha = 1.0,
                double beta = 0.0);
  void gram_lower(double alpha, ConstView a, View c);
  void downdate_lower(ConstView a, View c);

  Info info(int count) { return Info(static_cast<std::size_t>(count), 0); }
  void factor_block(View a, View inverse, int at, Info& info);
  bool failed_all(const Info& info);
  std::vector<int> read(const Info& info) { return info; }

  void combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& beta,
               ConstView b, const Coefficients& diagonal = 0.0, Part part = Part::full);
  void combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& diagonal = 0.0,
               Part part = Part::full) {
    combine(c, alpha, a, 0.0, ConstView{}, diagonal, part);
  }
  void combine(View c, const Coefficients& diagonal, Part part = Part::full) {
    combine(c, 0.0, ConstView{}, 0.0, ConstView{}, diagonal, part);
  }
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
  int threads();
  void poll();

 private:
  BufferScope recycle_;
};

}  // namespace ccamerge
