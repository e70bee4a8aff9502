#include <algorithm>

#include "cuda/moments/state_updates.hpp"
#include "cuda/moments/totals.hpp"

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

constexpr int kAddends = 16;  // that a launch adds
template <class T>
struct Addends {
  Addend<T> of[kAddends];
};

// A thread has four neighbouring columns; a block so many times kLanes columns, and as many rows as
// it has shares. Where there are many parts to add, the shares are of a row's parts instead.
constexpr int kSide = 4, kLanes = 32, kShares = 8;
constexpr std::int64_t kManyParts = 16;

struct alignas(16) Two {
  double of[2];
};
template <class T>
struct alignas(16) Four {
  T of[kSide];
};

// The sum of every `step`-th part from the first on, of so many columns.
template <class T>
__device__ void sum_parts(const Addend<T>& a, const T* from, int columns, std::int64_t first,
                          std::int64_t step, double (&sum)[kSide]) {
  if (a.vectors && columns == kSide) {
#pragma unroll 4
    for (std::int64_t p = first; p < a.parts; p += step) {
      const Four<T> x = *reinterpret_cast<const Four<T>*>(from + p * a.part_stride);
#pragma unroll
      for (int k = 0; k < kSide; ++k) sum[k] += static_cast<double>(x.of[k]);
    }
  } else {
    for (std::int64_t p = first; p < a.parts; p += step) {
#pragma unroll
      for (int k = 0; k < kSide; ++k) {
        if (k < columns) sum[k] += static_cast<double>(from[p * a.part_stride + k]);
      }
    }
  }
}

template <class T, bool shared_parts>
__global__ void __launch_bounds__(kLanes* kShares)
    add_kernel(const __grid_constant__ Addends<T> addends, const State* state) {
  __shared__ double shared[shared_parts ? kShares : 1][kLanes][kSide];
  if (state->bad || state->selected == 0) return;
  const Addend<T>& a = addends.of[blockIdx.z];
  const int lane = static_cast<int>(threadIdx.x), share = static_cast<int>(threadIdx.y);
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * kLanes + lane) * kSide;
  const std::int64_t c = a.column + column, left = a.width - column;
  const int columns = left < kSide ? left < 0 ? 0 : static_cast<int>(left) : kSide;
  const State now = *state;
  constexpr int rows = shared_parts ? 1 : kShares;
  for (std::int64_t row0 = static_cast<std::int64_t>(blockIdx.y) * rows; row0 < a.height;
       row0 += static_cast<std::int64_t>(gridDim.y) * rows) {
    const std::int64_t row = shared_parts ? row0 : row0 + share, r = a.row + row;
    const bool any = row < a.height && columns > 0 && !(a.total.own && c + columns <= r);
    double* const to = a.total.data + r * a.total.columns + c;
    // Below the diagonal nothing counts, and anything may stand.
    const bool pairs = columns == kSide && a.total.columns % 2 == 0 && c % 2 == 0;
    Two before[kSide / 2] = {};
    if (any && pairs && (!shared_parts || share == 0)) {
#pragma unroll
      for (int k = 0; k < kSide / 2; ++k) before[k] = reinterpret_cast<const Two*>(to)[k];
    }
    double sum[kSide] = {};
    if (any) {
      sum_parts(a, a.data + row * a.stride + column, columns, shared_parts ? share : 0,
                shared_parts ? kShares : 1, sum);
    }
    if constexpr (shared_parts) {
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kSide; ++k) shared[share][lane][k] = sum[k];
      __syncthreads();
      if (share != 0) continue;
      for (int s = 1; s < kShares; ++s) {
#pragma unroll
        for (int k = 0; k < kSide; ++k) sum[k] += shared[s][lane][k];
      }
    }
    if (!any) continue;
    const auto added = [&](int k) {
      return centred(sum[k], a.rows, r, a.columns, c + k, now, a.last);
    };
    if (pairs) {
#pragma unroll
      for (int k = 0; k < kSide / 2; ++k) {
        reinterpret_cast<Two*>(to)[k] = {
            {before[k].of[0] + added(2 * k), before[k].of[1] + added(2 * k + 1)}};
      }
    } else {
#pragma unroll
      for (int k = 0; k < kSide; ++k) {
        if (k < columns) to[k] += added(k);
      }
    }
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
  centre.unit[f] = 1;
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

}  // namespace

template <class T>
void add(const std::vector<Addend<T>>& addends, const State* state, cudaStream_t stream) {
  for (std::size_t begin = 0; begin < addends.size(); begin += kAddends) {
    const std::size_t count = std::min<std::size_t>(kAddends, addends.size() - begin);
    Addends<T> some{};
    std::int64_t height = 0, width = 0, parts = 0;
    for (std::size_t i = 0; i < count; ++i) {
      Addend<T>& one = some.of[i] = addends[begin + i];
      constexpr std::int64_t vector = 16 / sizeof(T);
      one.vectors = reinterpret_cast<std::uintptr_t>(one.data) % 16 == 0 &&
                    one.stride % vector == 0 && one.part_stride % vector == 0;
      height = std::max(height, one.height);
      width = std::max(width, one.width);
      parts = std::max(parts, one.parts);
    }
    if (height == 0 || width == 0) continue;
    const bool shared = parts >= kManyParts;
    const std::int64_t blocks = shared ? height : ceil_div<std::int64_t>(height, kShares);
    const dim3 grid(static_cast<unsigned>(ceil_div<std::int64_t>(width, kLanes * kSide)),
                    static_cast<unsigned>(std::min<std::int64_t>(blocks, 65535)),
                    static_cast<unsigned>(count));
    launch(shared ? add_kernel<T, true> : add_kernel<T, false>, grid, {kLanes, kShares}, 0, stream,
           some, state);
  }
}
template void add(const std::vector<Addend<float>>&, const State*, cudaStream_t);
template void add(const std::vector<Addend<double>>&, const State*, cudaStream_t);

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
