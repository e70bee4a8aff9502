#include <algorithm>

#include "cuda/state_updates.hpp"
#include "cuda/totals.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kThreads = 128;

// Columns along the grid's first extent, a thread each; rows along the second, which is limited, so
// that a block may have several.
__device__ std::int64_t column() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

dim3 grid_of(std::int64_t rows, std::int64_t columns) {
  return {static_cast<unsigned>(ceil_div<std::int64_t>(columns, kThreads)),
          static_cast<unsigned>(std::min<std::int64_t>(rows, 65535))};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_kernel(Total total, Products<T> products, Centre rows, Centre columns, const State* state) {
  if (state->failed || state->selected == 0) return;
  if (column() >= products.columns) return;
  const std::int64_t c = products.column + column();
  for (std::int64_t row = blockIdx.y; row < products.rows; row += gridDim.y) {
    const std::int64_t r = products.row + row;
    if (total.own && c < r) return;
    const T* from = products.data + row * products.stride + column();
    double sum = 0;
    for (std::int64_t p = 0; p < products.parts; ++p) {
      sum += static_cast<double>(from[p * products.part_stride]);
    }
    total.data[r * total.columns + c] += centred(sum, rows, r, columns, c, *state, products.last);
  }
}

__global__ void __launch_bounds__(kThreads)
    read_kernel(Total total, bool transposed, bool divided, const State* state, double* out) {
  const std::int64_t width = transposed ? total.rows : total.columns;
  const std::int64_t height = transposed ? total.columns : total.rows;
  if (column() >= width) return;
  for (std::int64_t row = blockIdx.y; row < height; row += gridDim.y) {
    const std::int64_t r = transposed ? column() : row, c = transposed ? row : column();
    const bool below = total.own && c < r;
    const double value = total.data[below ? c * total.columns + r : r * total.columns + c];
    out[row * width + column()] = divided ? value / static_cast<double>(state->count) : value;
  }
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

constexpr int kStates = 128;  // that a launch copies

struct States {
  const State* of[kStates];
};

__global__ void __launch_bounds__(kStates)
    states_kernel(const __grid_constant__ States from, int count, State* to) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < count) to[i] = *from.of[i];
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

void gather_states(const std::vector<const State*>& from, State* to, cudaStream_t stream) {
  for (std::size_t first = 0; first < from.size(); first += kStates) {
    const std::size_t count = std::min<std::size_t>(kStates, from.size() - first);
    States states{};
    std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(first), count, states.of);
    launch(states_kernel, 1, kStates, 0, stream, states, static_cast<int>(count), to + first);
  }
}

void move_mean(const Centre& centre, double* mean, std::int64_t features, const State* state,
               cudaStream_t stream) {
  launch(mean_kernel, static_cast<unsigned>(ceil_div<std::int64_t>(features, kThreads)), kThreads,
         0, stream, centre, mean, features, state);
}

}  // namespace ccamerge::cuda
