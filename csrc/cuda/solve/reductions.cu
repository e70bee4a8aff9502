#include "cuda/solve/reductions.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kThreads = 128;  // a block a column

// What all threads of a block hold, combined pair by pair; every thread gets it.
template <class T, class Combine>
__device__ T reduce(T own, Combine&& combine) {
  __shared__ T shared[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  shared[thread] = own;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (thread < step) shared[thread] = combine(shared[thread], shared[thread + step]);
    __syncthreads();
  }
  return shared[0];
}

// Columns are numbered along the grid's first extent, members along the second.
template <class T>
__device__ T* member(const BasicView<T>& a) {
  return a.data + static_cast<int>(blockIdx.y) * a.stride;
}

struct Column {  // ColumnSums without initialisers, which shared memory cannot have
  double absolute, off_squares, diagonal, largest;
};

__global__ void __launch_bounds__(kThreads) sums_kernel(ConstView a, Part part, ColumnSums* sums) {
  const int j = static_cast<int>(blockIdx.x);
  const double* const data = member(a);
  Column own{0, 0, 0, 0};
  for (int i = static_cast<int>(threadIdx.x); i < a.rows; i += kThreads) {
    const bool mirrored = part == Part::lower && i < j;
    const double x = mirrored ? data[static_cast<std::ptrdiff_t>(i) * a.ld + j]
                              : data[static_cast<std::ptrdiff_t>(j) * a.ld + i];
    const double size = fabs(x);
    own.absolute += size;
    own.largest = fmax(own.largest, size);  // leaves NaN out
    if (i == j) {
      own.diagonal = x;
    } else {
      own.off_squares += x * x;
    }
  }
  const Column all = reduce(own, [](const Column& x, const Column& y) {
    // One thread alone met the diagonal; the others' zeros change nothing.
    return Column{x.absolute + y.absolute, x.off_squares + y.off_squares, x.diagonal + y.diagonal,
                  fmax(x.largest, y.largest)};
  });
  if (threadIdx.x == 0) {
    sums[static_cast<std::ptrdiff_t>(blockIdx.y) * a.cols + j] = {all.absolute, all.off_squares,
                                                                  all.diagonal, all.largest};
  }
}

__global__ void __launch_bounds__(kThreads) dots_kernel(ConstView a, ConstView b, double* dots) {
  const int j = static_cast<int>(blockIdx.x);
  const double* const x = member(a) + static_cast<std::ptrdiff_t>(j) * a.ld;
  const double* const y = member(b) + static_cast<std::ptrdiff_t>(j) * b.ld;
  double own = 0;
  for (int i = static_cast<int>(threadIdx.x); i < a.rows; i += kThreads) own += x[i] * y[i];
  const double all = reduce(own, [](double p, double q) { return p + q; });
  if (threadIdx.x == 0) dots[static_cast<std::ptrdiff_t>(blockIdx.y) * a.cols + j] = all;
}

struct Entry {
  double size;
  int row;
  bool negative;
};

__global__ void __launch_bounds__(kThreads) signs_kernel(View a) {
  double* const column = member(a) + static_cast<std::ptrdiff_t>(blockIdx.x) * a.ld;
  Entry own{-1, a.rows, false};
  for (int i = static_cast<int>(threadIdx.x); i < a.rows; i += kThreads) {
    if (fabs(column[i]) > own.size) own = {fabs(column[i]), i, column[i] < 0};
  }
  const Entry top = reduce(own, [](const Entry& x, const Entry& y) {
    return y.size > x.size || (y.size == x.size && y.row < x.row) ? y : x;
  });
  if (!top.negative) return;
  for (int i = static_cast<int>(threadIdx.x); i < a.rows; i += kThreads) column[i] = -column[i];
}

template <class... Parameters, class... Arguments>
void launch_columns(void (*kernel)(Parameters...), int cols, int count, cudaStream_t stream,
                    Arguments&&... arguments) {
  if (cols == 0 || count == 0) return;
  launch(kernel, {static_cast<unsigned>(cols), static_cast<unsigned>(count)}, kThreads, 0, stream,
         std::forward<Arguments>(arguments)...);
}

}  // namespace

void column_sums(ConstView a, Part part, ColumnSums* sums, cudaStream_t stream) {
  launch_columns(sums_kernel, a.cols, a.count, stream, a, part, sums);
}

void column_dots(ConstView a, ConstView b, double* dots, cudaStream_t stream) {
  launch_columns(dots_kernel, a.cols, a.count, stream, a, b, dots);
}

void fix_signs(View a, cudaStream_t stream) {
  launch_columns(signs_kernel, a.cols, a.count, stream, a);
}

}  // namespace ccamerge::cuda
