// Where to centre an update's features, and what follows from that.
#include <cmath>

#include "cuda/moments/elements.hpp"
#include "cuda/moments/state_updates.hpp"
#include "cuda/moments/statistics.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kLanes = 32, kRows = 32;  // of blocks that look at a feature a lane
constexpr int kThreads = 256;
constexpr int kProbes = 4;  // that a thread reads
constexpr std::int64_t kProbed = kRows * kProbes;
constexpr int kExponent = 14;       // of the largest difference once scaled
constexpr int kMostExponent = 126;  // of a scale, which is a normal number of float32
// Of elements whose squares are normal numbers of float32, and of float64.
constexpr double kLeastSpread = 0x1p-62, kLeastDoubleSpread = 0x1p-510;

__device__ double infinity() { return static_cast<double>(infinity32()); }

// A feature's partial and a sum beside it.
struct Pair {
  Partial partial;
  double beside;
};

// Adds what the rows of a (kRows, kLanes) block hold to row 0's, in order.
__device__ void reduce_rows(Pair& own) {
  __shared__ Pair shared[kRows][kLanes];
  shared[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int r = 1; r < kRows; ++r) {
    include(own.partial, shared[r][threadIdx.x].partial);
    own.beside += shared[r][threadIdx.x].beside;
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

// Whether differences of what lies between two numbers from a third are exact in its type.
__device__ bool exact(double near, double lowest, double highest) {
  const double size = fabs(near);
  const double least = near < 0 ? -highest : lowest, most = near < 0 ? -lowest : highest;
  return 2 * least >= size && most <= 2 * size;
}

// The k-th of the samples that are looked at: one of each stretch of equal length, but none that
// an axis of the samples could be in step with.
__device__ std::int64_t probe(std::int64_t k, std::int64_t samples) {
  static_assert((kProbed & (kProbed - 1)) == 0);  // divisions by it are shifts
  if (samples <= kProbed) return k;
  const std::int64_t first = k * samples / kProbed, next = (k + 1) * samples / kProbed;
  auto mixed = static_cast<std::uint32_t>(k + 1) * 2654435769u;  // Knuth's multiplicative hashing
  mixed ^= mixed >> 15;
  return first + static_cast<std::int64_t>(static_cast<std::uint64_t>(next - first) * mixed >> 32);
}

__global__ void __launch_bounds__(kLanes* kRows)
    guess_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Pointers chosen) {
  const int z = static_cast<int>(blockIdx.y);
  const Features& features = batch.features[z];
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kLanes + threadIdx.x;
  const bool inside = f < features.count;
  const double shift = inside ? batch.shift[z][f] : 0;
  const std::int64_t at = inside ? features.features.offset(f) : 0;
  const std::int64_t probed = batch.samples < kProbed ? batch.samples : kProbed;
  Pair sums{{0, infinity(), -infinity()}, 0};
  with_elements(features, [&](const auto* data) {
    double x[kProbes];
#pragma unroll
    for (int p = 0; p < kProbes; ++p) {
      const std::int64_t k = threadIdx.y + static_cast<std::int64_t>(p) * kRows;
      x[p] = 0;
      if (!inside || k >= probed) continue;
      x[p] = widened<double>(data[features.samples.offset(probe(k, batch.samples)) + at]);
    }
#pragma unroll
    for (int p = 0; p < kProbes; ++p) {
      if (!inside || threadIdx.y + static_cast<std::int64_t>(p) * kRows >= probed) continue;
      const double y = x[p] - shift;
      include(sums.partial, {y, x[p], x[p]});
      sums.beside += y * y;
    }
  });
  reduce_rows(sums);
  if (threadIdx.y != 0 || !inside) return;
  const Partial& own = sums.partial;
  const auto count = static_cast<double>(probed);
  const double mean = own.sum / count, square = sums.beside / count;
  // Comparisons with what is not a number, of bad values, leave the shift as it was.
  double next = shift;
  if (own.lowest == own.highest) {
    next = own.lowest;                    // a constant feature is met exactly
  } else if (2 * mean * mean > square) {  // mean^2 > square - mean^2
    next = shift + mean;
  }
  if (!(next >= -kLargestFloat && next <= kLargestFloat)) next = shift;
  chosen.of[z][f] = rounded(next, Form::singles, features.dtype);
}

__global__ void __launch_bounds__(kLanes* kRows)
    derive_kernel(const __grid_constant__ Batch batch, Form form, const __grid_constant__ Sums sums,
                  const __grid_constant__ ConstPointers mean,
                  const __grid_constant__ Centres centres, const __grid_constant__ Pointers chosen,
                  State* state) {
  const int z = static_cast<int>(blockIdx.y);
  const std::int64_t count = batch.features[z].count;
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kLanes + threadIdx.x;
  Pair all{{0, infinity(), -infinity()}, 0};
  for (std::int64_t p = threadIdx.y; p < sums.parts; p += kRows) {
    if (f < count) include(all.partial, sums.partials[z][p * count + f]);
    all.beside += static_cast<double>(sums.selected[p]);  // exact: far below 2^53
  }
  reduce_rows(all);
  if (threadIdx.y != 0) return;
  const Partial& own = all.partial;
  const double m = all.beside;
  if (f < count) {
    const bool constant = own.lowest == own.highest;
    const bool varies = own.lowest < own.highest;  // neither if nothing is selected
    double offset = m > 0 ? own.sum / m : 0, shift = 0;
    if (chosen.of[z]) {
      const double near = rounded(offset, form, batch.features[z].dtype);
      if (constant) shift = own.lowest;
      if (varies && (form != Form::narrow || exact(near, own.lowest, own.highest))) shift = near;
      chosen.of[z][f] = shift;
      offset -= shift;
    } else {
      shift = batch.shift[z][f];
    }
    // What is scaled is in range.
    const double least = form == Form::doubles ? kLeastDoubleSpread : kLeastSpread;
    if (!batch.scale[z] && varies && own.highest - own.lowest < least) {
      note(state, batch.first + z, kTooSmall, f);
    }
    double unit = varies ? 1 : 0;
    if (batch.scale[z]) {
      const double above = own.highest - shift, below = shift - own.lowest;
      int exponent = varies ? kExponent - ilogb(above > below ? above : below) : 0;
      exponent = exponent < -kMostExponent  ? -kMostExponent
                 : exponent > kMostExponent ? kMostExponent
                                            : exponent;
      batch.scale[z][f] = static_cast<float>(ldexp(1.0, exponent));
      if (varies) unit = ldexp(1.0, -exponent);
    }
    const Centre& to = centres.of[z];
    to.offset[f] = varies ? offset : 0;
    to.sum[f] = varies ? offset * m : 0;
    to.unit[f] = unit;
    // Exactly the value that a constant feature has.
    to.delta[f] = (constant ? own.lowest : shift + offset) - mean.of[z][f];
  }
  if (f == 0 && z == 0 && batch.first == 0) {
    state->before = state->count;
    state->selected = static_cast<long long>(m);
  }
}

__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Centres centres,
                  const __grid_constant__ ConstPointers chosen,
                  const __grid_constant__ Pointers shift, const __grid_constant__ Pointers mean,
                  State* state, bool last, long long update) {
  const bool first_thread = blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0;
  if (state->bad) {  // of this update, or of one that has failed
    if (last && first_thread && !state->failed) state->failed = update;
    return;
  }
  if (state->selected == 0) return;
  const int z = static_cast<int>(blockIdx.y);
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (f < batch.features[z].count) {
    mean.of[z][f] = moved_mean(*state, mean.of[z][f], centres.of[z].delta[f]);
    if (chosen.of[z]) shift.of[z][f] = chosen.of[z][f];
  }
  if (last && first_thread) state->count = state->before + state->selected;
}

template <class Table, class Source>
Table table_of(const Source* source, int models) {
  Table table{};
  for (int i = 0; source && i < models; ++i) table.of[i] = source[i];
  return table;
}

dim3 lanes_grid(const Batch& batch) {
  return {static_cast<unsigned>(ceil_div<std::int64_t>(batch.widest(), kLanes)),
          static_cast<unsigned>(batch.models)};
}

}  // namespace

void guess_shifts(const Batch& batch, double* const* chosen, cudaStream_t stream) {
  launch(guess_kernel, lanes_grid(batch), {kLanes, kRows}, 0, stream, batch,
         table_of<Pointers>(chosen, batch.models));
}

void derive_centres(const Batch& batch, Form form, const Sums& sums, const double* const* mean,
                    const Centre* centres, double* const* chosen, State* state,
                    cudaStream_t stream) {
  launch(derive_kernel, lanes_grid(batch), {kLanes, kRows}, 0, stream, batch, form, sums,
         table_of<ConstPointers>(mean, batch.models), table_of<Centres>(centres, batch.models),
         table_of<Pointers>(chosen, batch.models), state);
}

void finish(const Batch& batch, const Centre* centres, const double* const* chosen,
            double* const* shift, double* const* mean, State* state, bool last, long long update,
            cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div<std::int64_t>(batch.widest(), kThreads)),
                  static_cast<unsigned>(batch.models));
  launch(finish_kernel, grid, kThreads, 0, stream, batch, table_of<Centres>(centres, batch.models),
         table_of<ConstPointers>(chosen, batch.models), table_of<Pointers>(shift, batch.models),
         table_of<Pointers>(mean, batch.models), state, last, update);
}

}  // namespace ccamerge::cuda
