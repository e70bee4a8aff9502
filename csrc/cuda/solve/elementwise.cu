#include <algorithm>
#include <cstring>

#include "cuda/solve/elementwise.hpp"

namespace ccamerge::cuda {
namespace {

// Matrices are walked in square tiles; a tile's columns are shared out among kRows threads a row.
constexpr int kTile = 32, kRows = 8;
constexpr int kMembers = 64;  // whose coefficients travel with a launch

struct Values {
  double of[kMembers];
};

// The tile of this block, and its member.
struct Tile {
  int row, col, member;
};
__device__ Tile tile_of(int rows) {
  const int tiles = (rows + kTile - 1) / kTile;
  const int block = static_cast<int>(blockIdx.x);
  return {block % tiles * kTile, block / tiles * kTile, static_cast<int>(blockIdx.y)};
}

// Calls visit(i, j) for the elements of a tile that are inside, those of a warp in one column.
template <class Visit>
__device__ void for_tile(const Tile& tile, int rows, int cols, Visit&& visit) {
  const int i = tile.row + static_cast<int>(threadIdx.x);
#pragma unroll
  for (int k = 0; k < kTile; k += kRows) {
    const int j = tile.col + static_cast<int>(threadIdx.y) + k;
    if (i < rows && j < cols) visit(i, j);
  }
}

template <class T>
__device__ T* member(const BasicView<T>& a, int k) {
  return a.data + k * a.stride;
}

template <class T>
__device__ T& at(const BasicView<T>& a, T* first, int i, int j) {
  return first[static_cast<std::ptrdiff_t>(j) * a.ld + i];
}

template <class... Parameters, class... Arguments>
void launch_tiles(void (*kernel)(Parameters...), int rows, int cols, int count, cudaStream_t stream,
                  Arguments&&... arguments) {
  if (rows == 0 || cols == 0 || count == 0) return;
  const dim3 grid(
      static_cast<unsigned>(ceil_div(rows, kTile)) * static_cast<unsigned>(ceil_div(cols, kTile)),
      static_cast<unsigned>(count));
  launch(kernel, grid, {kTile, kRows}, 0, stream, std::forward<Arguments>(arguments)...);
}

constexpr int kThreads = kTile * kRows;

__global__ void __launch_bounds__(kThreads)
    combine_kernel(View c, const __grid_constant__ Values alpha, ConstView a,
                   const __grid_constant__ Values beta, ConstView b,
                   const __grid_constant__ Values diagonal, Part part) {
  const Tile tile = tile_of(c.rows);
  if (part == Part::lower && tile.row + kTile <= tile.col) return;
  const double x = a.data ? alpha.of[tile.member] : 0, y = b.data ? beta.of[tile.member] : 0;
  const double z = diagonal.of[tile.member];
  double* const to = member(c, tile.member);
  const double* const first = member(a, tile.member);
  const double* const second = member(b, tile.member);
  for_tile(tile, c.rows, c.cols, [&](int i, int j) {
    if (part == Part::lower && i < j) return;
    double sum = i == j ? z : 0;
    if (x != 0) sum += x * at(a, first, i, j);
    if (y != 0) sum += y * at(b, second, i, j);
    at(c, to, i, j) = sum;
  });
}

struct Sources {
  const double* of[kMembers];
};

__global__ void __launch_bounds__(kThreads)
    stack_kernel(const __grid_constant__ Sources from, int ld, View to) {
  const Tile tile = tile_of(to.rows);
  const double* const source = from.of[tile.member];
  double* const target = member(to, tile.member);
  for_tile(tile, to.rows, to.cols, [&](int i, int j) {
    at(to, target, i, j) = source[static_cast<std::ptrdiff_t>(j) * ld + i];
  });
}

__global__ void __launch_bounds__(kThreads) transpose_kernel(ConstView from, View to) {
  __shared__ double shared[kTile][kTile + 1];
  const Tile tile = tile_of(from.rows);
  const double* const source = member(from, tile.member);
  for_tile(tile, from.rows, from.cols,
           [&](int i, int j) { shared[j - tile.col][i - tile.row] = at(from, source, i, j); });
  __syncthreads();
  double* const target = member(to, tile.member);
  for_tile({tile.col, tile.row, tile.member}, to.rows, to.cols,
           [&](int i, int j) { at(to, target, i, j) = shared[i - tile.col][j - tile.row]; });
}

__global__ void __launch_bounds__(kThreads) mirror_kernel(View a) {
  __shared__ double shared[kTile][kTile + 1];
  const Tile tile = tile_of(a.rows);
  if (tile.row < tile.col) return;
  double* const data = member(a, tile.member);
  for_tile(tile, a.rows, a.cols,
           [&](int i, int j) { shared[j - tile.col][i - tile.row] = at(a, data, i, j); });
  __syncthreads();
  for_tile({tile.col, tile.row, tile.member}, a.rows, a.cols, [&](int i, int j) {
    if (i < j) at(a, data, i, j) = shared[i - tile.col][j - tile.row];
  });
}

__global__ void __launch_bounds__(kThreads) reverse_kernel(ConstView from, View to) {
  const Tile tile = tile_of(to.rows);
  const double* const source = member(from, tile.member);
  double* const target = member(to, tile.member);
  for_tile(tile, to.rows, to.cols,
           [&](int i, int j) { at(to, target, i, j) = at(from, source, i, to.cols - 1 - j); });
}

__global__ void __launch_bounds__(kThreads) scale_kernel(View a, const double* factors) {
  const Tile tile = tile_of(a.rows);
  double* const data = member(a, tile.member);
  const double* const own = factors + static_cast<std::ptrdiff_t>(tile.member) * a.cols;
  for_tile(tile, a.rows, a.cols, [&](int i, int j) { at(a, data, i, j) *= own[j]; });
}

__global__ void __launch_bounds__(kThreads)
    gather_kernel(ConstView from, const int* rows, const int* cols, View to) {
  for_tile(tile_of(to.rows), to.rows, to.cols,
           [&](int i, int j) { at(to, to.data, i, j) = at(from, from.data, rows[i], cols[j]); });
}

__global__ void __launch_bounds__(kThreads)
    scatter_kernel(ConstView from, const int* rows, const int* cols, View to) {
  for_tile(tile_of(from.rows), from.rows, from.cols,
           [&](int i, int j) { at(to, to.data, rows[i], cols[j]) = at(from, from.data, i, j); });
}

__device__ unsigned long long bits(double x) {
  unsigned long long out;
  std::memcpy(&out, &x, sizeof(out));
  return out;
}

// Of a tile below the diagonal and its mirror image.
__global__ void __launch_bounds__(kThreads) symmetrise_kernel(View a, SymmetryBits* sizes) {
  __shared__ double shared[kTile][kTile + 1];
  const Tile tile = tile_of(a.rows);
  if (tile.row < tile.col) return;
  const Tile mirror{tile.col, tile.row, tile.member};
  double* const data = member(a, tile.member);
  for_tile(mirror, a.rows, a.cols,
           [&](int i, int j) { shared[i - mirror.row][j - mirror.col] = at(a, data, i, j); });
  __syncthreads();
  double largest = 0, apart = 0;
  for_tile(tile, a.rows, a.cols, [&](int i, int j) {
    if (i < j) return;
    double& lower = at(a, data, i, j);
    double& upper = shared[j - tile.col][i - tile.row];
    largest = fmax(largest, fmax(fabs(lower), fabs(upper)));
    apart = fmax(apart, fabs(lower - upper));
    lower = upper = 0.5 * lower + 0.5 * upper;
  });
  __syncthreads();
  for_tile(mirror, a.rows, a.cols, [&](int i, int j) {
    if (i < j) at(a, data, i, j) = shared[i - mirror.row][j - mirror.col];
  });
  for (int step = kTile / 2; step > 0; step /= 2) {
    largest = fmax(largest, __shfl_xor_sync(~0u, largest, step));
    apart = fmax(apart, __shfl_xor_sync(~0u, apart, step));
  }
  if (threadIdx.x == 0) {
    atomicMax(&sizes[tile.member].largest, bits(largest));
    atomicMax(&sizes[tile.member].apart, bits(apart));
  }
}

Values values_of(const Coefficients& coefficients, int first, int count) {
  Values values{};
  for (int i = 0; i < count; ++i) values.of[i] = coefficients[first + i];
  return values;
}

template <class T>
BasicView<T> members(BasicView<T> a, int first, int count) {
  if (!a.data) return a;
  return {a.data + first * a.stride, a.rows, a.cols, a.ld, count, a.stride};
}

}  // namespace

void combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& beta, ConstView b,
             const Coefficients& diagonal, Part part, cudaStream_t stream) {
  for (int first = 0; first < c.count; first += kMembers) {
    const int count = std::min(kMembers, c.count - first);
    launch_tiles(combine_kernel, c.rows, c.cols, count, stream, members(c, first, count),
                 values_of(alpha, first, count), members(a, first, count),
                 values_of(beta, first, count), members(b, first, count),
                 values_of(diagonal, first, count), part);
  }
}

void stack(const std::vector<const double*>& from, int ld, View to, cudaStream_t stream) {
  for (int first = 0; first < to.count; first += kMembers) {
    const int count = std::min(kMembers, to.count - first);
    Sources sources{};
    std::copy_n(from.begin() + first, count, sources.of);
    launch_tiles(stack_kernel, to.rows, to.cols, count, stream, sources, ld,
                 members(to, first, count));
  }
}

void transpose(ConstView from, View to, cudaStream_t stream) {
  launch_tiles(transpose_kernel, from.rows, from.cols, to.count, stream, from, to);
}

void mirror_lower(View a, cudaStream_t stream) {
  launch_tiles(mirror_kernel, a.rows, a.cols, a.count, stream, a);
}

void reverse_columns(ConstView from, View to, cudaStream_t stream) {
  launch_tiles(reverse_kernel, to.rows, to.cols, to.count, stream, from, to);
}

void scale_columns(View a, const double* factors, cudaStream_t stream) {
  launch_tiles(scale_kernel, a.rows, a.cols, a.count, stream, a, factors);
}

void gather(ConstView from, const int* rows, const int* cols, View to, cudaStream_t stream) {
  launch_tiles(gather_kernel, to.rows, to.cols, 1, stream, from, rows, cols, to);
}

void scatter(ConstView from, const int* rows, const int* cols, View to, cudaStream_t stream) {
  launch_tiles(scatter_kernel, from.rows, from.cols, 1, stream, from, rows, cols, to);
}

void symmetrise(View a, SymmetryBits* sizes, cudaStream_t stream) {
  launch_tiles(symmetrise_kernel, a.rows, a.cols, a.count, stream, a, sizes);
}

}  // namespace ccamerge::cuda
