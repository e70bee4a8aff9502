#include "cuda/state_updates.hpp"
#include "cuda/totals.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kThreads = 128;

// A thread an element; blocks are numbered along rows, each row's columns in tiles of kThreads.
struct Place {
  std::int64_t row, column;
};
__device__ Place place(std::int64_t columns) {
  const std::int64_t tiles = (columns + kThreads - 1) / kThreads;
  const std::int64_t block = blockIdx.x;
  return {block / tiles, block % tiles * kThreads + threadIdx.x};
}

dim3 grid_of(std::int64_t rows, std::int64_t columns) {
  return static_cast<unsigned>(rows * ceil_div<std::int64_t>(columns, kThreads));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_kernel(Total total, Products<T> products, Centre rows, Centre columns, const State* state) {
  if (state->failed >= 0 || state->selected == 0) return;
  const Place at = place(products.columns);
  const std::int64_t r = products.row + at.row, c = products.column + at.column;
  if (at.column >= products.columns || (total.own && c < r)) return;
  const T* from = products.data + at.row * products.stride + at.column;
  double sum = 0;
  for (std::int64_t p = 0; p < products.parts; ++p) {
    sum += static_cast<double>(from[p * products.part_stride]);
  }
  total.data[r * total.columns + c] += centred(sum, rows, r, columns, c, *state, products.last);
}

__global__ void __launch_bounds__(kThreads)
    read_kernel(Total total, bool transposed, bool divided, const State* state, double* out) {
  const Place at = place(transposed ? total.rows : total.columns);
  const std::int64_t r = transposed ? at.column : at.row, c = transposed ? at.row : at.column;
  if (r >= total.rows || c >= total.columns) return;
  const bool below = total.own && c < r;
  const double value = total.data[below ? c * total.columns + r : r * total.columns + c];
  out[at.row * (transposed ? total.rows : total.columns) + at.column] =
      divided ? value / static_cast<double>(state->count) : value;
}

__global__ void __launch_bounds__(kThreads)
    centre_kernel(const double* mean, const double* other, std::int64_t features, Centre centre) {
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (f >= features) return;
  centre.sum[f] = centre.offset[f] = 0;
  centre.keep[f] = 1;
  centre.delta[f] = other[f] - mean[f];
}

__global__ void __launch_bounds__(kThreads)
    mean_kernel(Centre centre, double* mean, std::int64_t features, const State* state) {
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (f < features) mean[f] = moved_mean(*state, mean[f], centre.delta[f]);
}

template <class T>
void add_products(const Total& total, const Products<T>& products, const Centre& rows,
                  const Centre& columns, const State* state, cudaStream_t stream) {
  if (products.rows == 0 || products.columns == 0) return;
  launch(add_kernel<T>, grid_of(products.rows, products.columns), kThreads, 0, stream, total,
         products, rows, columns, state);
}

}  // namespace

void add(const Total& total, const Products<float>& products, const Centre& rows,
         const Centre& columns, const State* state, cudaStream_t stream) {
  add_products(total, products, rows, columns, state, stream);
}

void add(const Total& total, const Products<double>& products, const Centre& rows,
         const Centre& columns, const State* state, cudaStream_t stream) {
  add_products(total, products, rows, columns, state, stream);
}

void read(const Total& total, bool transposed, bool divided, const State* state, double* out,
          cudaStream_t stream) {
  const std::int64_t rows = transposed ? total.columns : total.rows;
  const std::int64_t columns = transposed ? total.rows : total.columns;
  launch(read_kernel, grid_of(rows, columns), kThreads, 0, stream, total, transposed, divided,
         state, out);
}

void centre_on(const double* mean, const double* other, std::int64_t features, const Centre& centre,
               cudaStream_t stream) {
  launch(centre_kernel, static_cast<unsigned>(ceil_div<std::int64_t>(features, kThreads)), kThreads,
         0, stream, mean, other, features, centre);
}

void move_mean(const Centre& centre, double* mean, std::int64_t features, const State* state,
               cudaStream_t stream) {
  launch(mean_kernel, static_cast<unsigned>(ceil_div<std::int64_t>(features, kThreads)), kThreads,
         0, stream, centre, mean, features, state);
}

}  // namespace ccamerge::cuda
