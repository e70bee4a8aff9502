#include <algorithm>

#include "cuda/state_updates.hpp"
#include "cuda/statistics.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kTileSamples = 32, kTileFeatures = 64;
constexpr int kThreads = 256;
constexpr int kGroups = kThreads / kTileFeatures;  // of threads that share a column of a tile
constexpr int kLanes = 32, kRows = 8;              // of blocks that look at a feature a lane

constexpr std::int64_t kLeastPartial = 512, kMostPartials = 1024;
constexpr std::int64_t kProbed = 256;
constexpr double kEnough = 32;  // samples that speak for the others

constexpr double kLargestDouble = 1e150;  // beyond it, sums of squares could overflow

__device__ float largest(float) { return kLargestFloat; }
__device__ double largest(double) { return kLargestDouble; }

__device__ double infinity() { return static_cast<double>(infinity32()); }

__device__ void include(Partial& into, const Partial& other) {
  into.sum += other.sum;
  into.lowest = other.lowest < into.lowest ? other.lowest : into.lowest;
  into.highest = other.highest > into.highest ? other.highest : into.highest;
}

// Adds what the rows of a (kRows, kLanes) block hold to row 0's, in order.
__device__ void reduce_rows(Partial& own) {
  __shared__ Partial shared[kRows][kLanes];
  __syncthreads();
  shared[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int r = 1; r < kRows; ++r) include(own, shared[r][threadIdx.x]);
}

// An element y (x - shift) of the operand.
template <Form form, class T>
__device__ void store(void* data, std::int64_t at, std::int64_t slab, DType dtype, T y) {
  if constexpr (form == Form::doubles) {
    static_cast<double*>(data)[at] = y;
  } else if constexpr (form == Form::narrow) {
    static_cast<std::uint16_t*>(data)[at] =
        dtype == DType::float16 ? to_half(y).bits : to_bfloat(y).bits;
  } else if constexpr (form == Form::planes) {
    const Split parts = split(y);
    auto* const to = static_cast<Bfloat*>(data) + at;
#pragma unroll
    for (int s = 0; s < kPlanes; ++s) to[s * slab] = parts.parts[part_of_plane(s)];
  }
}

template <class T, Form form>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Sums sums,
                std::int64_t first, std::int64_t last, std::int64_t per_block, State* state) {
  __shared__ T tile[kTileSamples][kTileFeatures + 1];
  __shared__ std::int64_t sample_at[kTileSamples], feature_at[kTileFeatures];
  __shared__ bool chosen[kTileSamples];
  __shared__ Partial groups[kGroups][kTileFeatures];
  __shared__ int counts[kTileSamples];
  if (state->failed) return;
  const int z = static_cast<int>(blockIdx.z), thread = static_cast<int>(threadIdx.x);
  const Features& features = batch.features[z];
  const std::int64_t feature0 = static_cast<std::int64_t>(blockIdx.y) * kTileFeatures;
  if (feature0 >= features.count) return;
  const int width = static_cast<int>(
      features.count - feature0 < kTileFeatures ? features.count - feature0 : kTileFeatures);
  if (thread < width) feature_at[thread] = features.features.offset(feature0 + thread);

  const int column = thread % kTileFeatures, group = thread / kTileFeatures;
  const T shift = column < width ? static_cast<T>(batch.shift[z][feature0 + column]) : T{0};
  const Target target = batch.target[z];
  std::int64_t end = last;
  if constexpr (form != Form::none) {  // rows of zeros fill the last chunk
    end = first + (last - first + target.rows - 1) / target.rows * target.rows;
  }
  const std::int64_t begin = first + static_cast<std::int64_t>(blockIdx.x) * per_block;
  end = begin + per_block < end ? begin + per_block : end;

  Partial own{0, infinity(), -infinity()};
  int count = 0;
  for (std::int64_t s0 = begin; s0 < end; s0 += kTileSamples) {
    __syncthreads();
    if (thread < kTileSamples) {
      const std::int64_t s = s0 + thread;
      const bool used = s < last && (!batch.mask || batch.mask[s]);
      chosen[thread] = used;
      sample_at[thread] = used ? features.samples.offset(s) : 0;
      count += used;
    }
    __syncthreads();
    with_elements(features, [&](const auto* data) {
#pragma unroll
      for (int k = 0; k < kTileSamples * kTileFeatures / kThreads; ++k) {
        const int e = thread + k * kThreads;
        const int i = features.by_samples ? e % kTileSamples : e / kTileFeatures;
        const int j = features.by_samples ? e / kTileSamples : e % kTileFeatures;
        const bool wanted = chosen[i] && j < width;
        tile[i][j] = wanted ? widened<T>(data[sample_at[i] + feature_at[j]]) : T{0};
      }
    });
    __syncthreads();
    if (column < width) {
      const std::int64_t row0 = s0 - first, chunk = target.rows ? row0 / target.rows : 0;
      constexpr int slabs = form == Form::planes ? kPlanes : 1;
      const std::int64_t slab = target.rows * target.stride;
      const std::int64_t at0 =
          chunk * slabs * slab + (row0 - chunk * target.rows) * target.stride + feature0 + column;
      T sum = 0;
#pragma unroll
      for (int k = 0; k < kTileSamples / kGroups; ++k) {
        const int i = group + k * kGroups;
        const T x = tile[i][column];
        T y = 0;
        if (chosen[i]) {
          if (!(x <= largest(T{}) && x >= -largest(T{}))) {
            note(state, batch.first + z, s0 + i, feature0 + column);
          }
          y = x - shift;
          sum += y;
          const auto value = static_cast<double>(x);
          own.lowest = value < own.lowest ? value : own.lowest;
          own.highest = value > own.highest ? value : own.highest;
        }
        if constexpr (form != Form::none) {
          if (s0 + i < end) {
            store<form>(target.data, at0 + i * target.stride, slab, features.dtype, y);
          }
        }
      }
      own.sum += static_cast<double>(sum);
    }
  }

  Partial* const partials = sums.partials[z];
  if (!partials || begin >= last) return;
  groups[group][column] = own;
  if (thread < kTileSamples) counts[thread] = count;
  __syncthreads();
  if (group == 0 && column < width) {
    for (int g = 1; g < kGroups; ++g) include(own, groups[g][column]);
    partials[static_cast<std::int64_t>(blockIdx.x) * features.count + feature0 + column] = own;
  }
  if (thread == 0 && blockIdx.y == 0 && z == 0 && batch.first == 0) {
    long long total = 0;
    for (int i = 0; i < kTileSamples; ++i) total += counts[i];
    sums.selected[blockIdx.x] = total;
  }
}

struct Pointers {
  double* of[kModelsPerLaunch];
};
struct ConstPointers {
  const double* of[kModelsPerLaunch];
};
struct Centres {
  Centre of[kModelsPerLaunch];
};

// As a number that the form can subtract.
__device__ double rounded(double x, Form form, DType dtype) {
  if (form == Form::doubles) return x;
  const auto single = static_cast<float>(x);
  if (form != Form::narrow) return static_cast<double>(single);
  return static_cast<double>(dtype == DType::float16 ? to_float(to_half(single))
                                                     : to_float(to_bfloat(single)));
}

// The k-th of the samples that are looked at: one of each stretch of equal length, but none that
// an axis of the samples could be in step with.
__device__ std::int64_t probe(std::int64_t k, std::int64_t probed, std::int64_t samples) {
  const std::int64_t first = k * samples / probed, next = (k + 1) * samples / probed;
  auto mixed = static_cast<std::uint32_t>(k + 1) * 2654435769u;  // Knuth's multiplicative hashing
  mixed ^= mixed >> 15;
  return first + mixed % (next - first);
}

__global__ void __launch_bounds__(kLanes* kRows)
    choose_kernel(const __grid_constant__ Batch batch, Form form,
                  const __grid_constant__ Pointers chosen) {
  const int z = static_cast<int>(blockIdx.y);
  const Features& features = batch.features[z];
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kLanes + threadIdx.x;
  const bool inside = f < features.count;
  const double shift = inside && form != Form::narrow ? batch.shift[z][f] : 0;
  const std::int64_t at = inside ? features.features.offset(f) : 0;
  const std::int64_t probed = batch.samples < kProbed ? batch.samples : kProbed;
  Partial own{0, infinity(), -infinity()}, squares{0, 0, 0}, seen{0, 0, 0};
  with_elements(features, [&](const auto* data) {
    for (std::int64_t k = threadIdx.y; k < probed && inside; k += kRows) {
      const std::int64_t s = probe(k, probed, batch.samples);
      if (batch.mask && !batch.mask[s]) continue;
      const auto x = widened<double>(data[features.samples.offset(s) + at]);
      include(own, {x - shift, x, x});
      squares.sum += (x - shift) * (x - shift);
      seen.sum += 1;
    }
  });
  reduce_rows(own);
  reduce_rows(squares);
  reduce_rows(seen);
  if (threadIdx.y != 0 || !inside) return;
  const double mean = own.sum / seen.sum, square = squares.sum / seen.sum;
  // Comparisons with NaN, of bad values or no samples, leave the shift as it was.
  double next = shift;
  const bool few = seen.sum < kEnough && batch.samples > kProbed;
  if (form == Form::narrow && few) {
    next = 0;  // the others may be anywhere
  } else if (own.lowest == own.highest) {
    next = own.lowest;  // a constant feature is met exactly
  } else if (form == Form::narrow) {
    const double near = rounded(mean, form, features.dtype), size = fabs(near);
    const double least = near < 0 ? -own.highest : own.lowest;
    const double most = near < 0 ? -own.lowest : own.highest;
    if (2 * least >= size && most <= 2 * size) next = near;
  } else if (2 * mean * mean > square) {  // mean^2 > square - mean^2
    next = shift + mean;
  }
  if (!(next >= -kLargestFloat && next <= kLargestFloat)) next = shift;
  chosen.of[z][f] = rounded(next, form, features.dtype);
}

__global__ void __launch_bounds__(kLanes* kRows)
    derive_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Sums sums,
                  std::int64_t partials, const __grid_constant__ ConstPointers mean,
                  const __grid_constant__ Centres centres, State* state, long long update) {
  const int z = static_cast<int>(blockIdx.y);
  const std::int64_t count = batch.features[z].count;
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kLanes + threadIdx.x;
  Partial own{0, infinity(), -infinity()}, selected{0, 0, 0};
  for (std::int64_t p = threadIdx.y; p < partials; p += kRows) {
    if (f < count) include(own, sums.partials[z][p * count + f]);
    selected.sum += static_cast<double>(sums.selected[p]);  // exact: far below 2^53
  }
  reduce_rows(own);
  reduce_rows(selected);
  if (threadIdx.y != 0) return;
  const double m = selected.sum;
  if (f < count) {
    const Centre& to = centres.of[z];
    const double shift = batch.shift[z][f];
    const double offset = m > 0 ? own.sum / m : 0;
    to.sum[f] = own.sum;
    to.offset[f] = offset;
    to.keep[f] = own.lowest < own.highest;
    // Exactly the value that a constant feature has.
    to.delta[f] = (own.lowest == own.highest ? own.lowest : shift + offset) - mean.of[z][f];
  }
  if (f == 0 && z == 0 && batch.first == 0) {
    state->before = state->count;
    state->selected = static_cast<long long>(m);
    if (state->bad && !state->failed) state->failed = update;
  }
}

__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Centres centres,
                  const __grid_constant__ ConstPointers chosen,
                  const __grid_constant__ Pointers shift, const __grid_constant__ Pointers mean,
                  State* state, bool last) {
  if (state->failed || state->selected == 0) return;
  const int z = static_cast<int>(blockIdx.y);
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (f < batch.features[z].count) {
    mean.of[z][f] = moved_mean(*state, mean.of[z][f], centres.of[z].delta[f]);
    if (chosen.of[z]) shift.of[z][f] = chosen.of[z][f];
  }
  if (last && f == 0 && z == 0) state->count = state->before + state->selected;
}

std::int64_t widest(const Batch& batch) {
  std::int64_t width = 0;
  for (int i = 0; i < batch.models; ++i) width = std::max(width, batch.features[i].count);
  return width;
}

template <class Table, class Source>
Table table_of(const Source* source, int models) {
  Table table{};
  for (int i = 0; i < models; ++i) table.of[i] = source[i];
  return table;
}

dim3 lanes_grid(const Batch& batch) {
  return {static_cast<unsigned>(ceil_div<std::int64_t>(widest(batch), kLanes)),
          static_cast<unsigned>(batch.models)};
}

}  // namespace

std::int64_t partial_samples(std::int64_t samples) {
  const std::int64_t least = ceil_div(samples, kMostPartials);
  return ceil_div<std::int64_t>(std::max(least, kLeastPartial), kTileSamples) * kTileSamples;
}

std::int64_t partial_count(std::int64_t samples) {
  return ceil_div(samples, partial_samples(samples));
}

void choose_shifts(const Batch& batch, Form form, double* const* chosen, cudaStream_t stream) {
  launch(choose_kernel, lanes_grid(batch), {kLanes, kRows}, 0, stream, batch, form,
         table_of<Pointers>(chosen, batch.models));
}

void pack(const Batch& batch, Form form, std::int64_t first, std::int64_t last, const Sums& sums,
          State* state, cudaStream_t stream) {
  bool wide = form == Form::doubles;
  std::int64_t rows = last - first;
  for (int i = 0; i < batch.models; ++i) {
    wide |= batch.features[i].dtype == DType::float64;
    if (form != Form::none)
      rows = ceil_div(last - first, batch.target[i].rows) * batch.target[i].rows;
  }
  const std::int64_t per_block = partial_samples(last - first);
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, per_block)),
                  static_cast<unsigned>(ceil_div<std::int64_t>(widest(batch), kTileFeatures)),
                  static_cast<unsigned>(batch.models));
  const auto run = [&](auto kernel) {
    launch(kernel, grid, kThreads, 0, stream, batch, sums, first, last, per_block, state);
  };
  switch (form) {
    case Form::none:
      return wide ? run(pack_kernel<double, Form::none>) : run(pack_kernel<float, Form::none>);
    case Form::narrow:
      return run(pack_kernel<float, Form::narrow>);
    case Form::planes:
      return run(pack_kernel<float, Form::planes>);
    case Form::doubles:
      return run(pack_kernel<double, Form::doubles>);
  }
}

void derive_centres(const Batch& batch, const Sums& sums, std::int64_t partials,
                    const double* const* mean, const Centre* centres, State* state,
                    long long update, cudaStream_t stream) {
  launch(derive_kernel, lanes_grid(batch), {kLanes, kRows}, 0, stream, batch, sums, partials,
         table_of<ConstPointers>(mean, batch.models), table_of<Centres>(centres, batch.models),
         state, update);
}

void finish(const Batch& batch, const Centre* centres, const double* const* chosen,
            double* const* shift, double* const* mean, State* state, bool last,
            cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div<std::int64_t>(widest(batch), kThreads)),
                  static_cast<unsigned>(batch.models));
  launch(finish_kernel, grid, kThreads, 0, stream, batch, table_of<Centres>(centres, batch.models),
         table_of<ConstPointers>(chosen, batch.models), table_of<Pointers>(shift, batch.models),
         table_of<Pointers>(mean, batch.models), state, last);
}

}  // namespace ccamerge::cuda
