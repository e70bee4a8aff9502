#include <algorithm>

#include "cuda/dynamic_shared.hpp"
#include "cuda/moments/elements.hpp"
#include "cuda/moments/mma.hpp"
#include "cuda/moments/small.hpp"
#include "cuda/moments/state_updates.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kLanes = 32, kThreads = kSmallWarps * kLanes;
constexpr int kTileSize = kSmallTile * kSmallTile;
constexpr std::size_t kStaticShared = 1024;  // at least what the kernel has of it

// Elements between features of the staged samples: fragments' loads meet no bank twice.
__host__ __device__ constexpr int pitch_of(int stage) { return stage + 8; }

// Differences from a shift are float32, also those of 16-bit numbers, and split into three bfloat16
// parts, y = p + q + r: the products p p', p q', q q', q p', p r' and r p' make float32's accuracy,
// without a scale.
constexpr int kParts = 3;

std::size_t shared_bytes(const SmallLayout& layout) {
  const auto features = static_cast<std::size_t>(layout.features);
  const auto stage = static_cast<std::size_t>(layout.stage);
  const std::size_t staged =
      kParts * features * static_cast<std::size_t>(pitch_of(layout.stage)) * sizeof(std::uint16_t);
  // What lies in the same memory when a window's samples are done.
  const std::size_t sums = features * (stage / 2) * sizeof(float);
  const std::size_t tiles =
      layout.split > 1 ? static_cast<std::size_t>(layout.tiles * kTileSize) * sizeof(float) : 0;
  return features * (sizeof(void*) + sizeof(float) + sizeof(int)) + std::max({staged, sums, tiles});
}

std::size_t most_shared(int device) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return static_cast<std::size_t>(bytes) - kStaticShared;
}

// What is known of how a feature's elements differ from the shift.
enum Varies {
  kNever = 0,
  kSlightly = 1,  // by so little that squares are no normal numbers of float32
  kVaries = 2,
};
// Bits of float32 of which a number from 2^-63 on has at least one.
constexpr std::uint32_t kNormalSquare = 0x60000000u;

// What a thread block works with in shared memory. In the place of the filling is what is somewhere
// else, too: of its products none is wanted.
template <class Source>
struct Shared {
  const Source** feature_at;
  float* shift;
  int* varies;            // see Varies
  std::uint16_t* staged;  // (parts, features, pitch)
};

template <class Source>
__device__ Shared<Source> shared_memory(const SmallLayout& layout) {
  Shared<Source> out;  // features are a multiple of 32: everything is aligned
  out.feature_at = reinterpret_cast<const Source**>(dynamic_shared());
  out.shift = reinterpret_cast<float*>(out.feature_at + layout.features);
  out.varies = reinterpret_cast<int*>(out.shift + layout.features);
  out.staged = reinterpret_cast<std::uint16_t*>(out.varies + layout.features);
  return out;
}

// Notes that of a feature of the axis, one or both of two samples are bad.
__device__ CCAMERGE_NOINLINE void note_on_axis(const SmallLayout& layout, State* state, int at,
                                               std::int64_t sample, unsigned bad) {
  for (int m = 0; m < layout.models; ++m) {
    const int f = at - layout.start[m];
    if (f < 0 || f >= layout.width[m]) continue;
    for (int half = 0; half < 2; ++half) {
      if (bad >> half & 1u) note(state, m, sample + half, f);
    }
  }
}

// One thread's share of the staging: a pair of neighbouring samples, and every step-th feature
// from the first on, `slots` of them at most. A warp takes what lies side by side in memory:
// samples of a feature, or eight features of four pairs of samples.
template <class Source, int stage, int slots>
struct Reader {
  static constexpr int pitch = pitch_of(stage);
  static constexpr int pairs = stage / 2, step = kThreads / pairs;
  static_assert(kSmallTile % step == 0);  // slots are there or not for all threads

  int pair, first;
  bool used[2];
  Source x[slots][2];
  float sum[slots];              // of x - shift
  std::uint32_t varies, normal;  // a bit for each slot

  __device__ explicit Reader(bool by_samples) : sum{}, varies(0), normal(0) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes,
              warp = thread / kLanes;
    constexpr int side = 8, warps = pairs / (kLanes / side);
    pair = by_samples ? thread % pairs : warp % warps * (kLanes / side) + lane / side;
    first = by_samples ? thread / pairs : warp / warps * side + lane % side;
  }

  // Starts to load the samples from s0 on. What is not used is read, too, from somewhere.
  __device__ void fetch(const Batch& batch, const SmallLayout& layout, const Shared<Source>& shared,
                        std::int64_t s0, std::int64_t end) {
    std::int64_t at[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t s = s0 + 2 * pair + half;
      used[half] = s < end;
      at[half] = batch.features[0].samples.offset(used[half] ? s : 0);
    }
#pragma unroll
    for (int k = 0; k < slots; ++k) {
      if (k * step >= layout.features) break;
      const Source* const from = shared.feature_at[first + k * step];
      x[k][0] = from[at[0]];
      x[k][1] = from[at[1]];
    }
  }

  // Leaves the parts of what was loaded, samples side by side, and adds to the sums.
  __device__ void store(const SmallLayout& layout, const Shared<Source>& shared, std::int64_t s0,
                        State* state) {
    std::uint16_t* to[kParts];
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      to[p] = shared.staged + (p * layout.features + first) * pitch + 2 * pair;
    }
    bool bad = false;
#pragma unroll
    for (int k = 0; k < slots; ++k) {
      if (k * step >= layout.features) break;
      const float shift = shared.shift[first + k * step];
      float y[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float value = used[half] ? widened<float>(x[k][half]) : shift;
        bad |= !(fabsf(value) <= kLargestFloat);
        y[half] = value - shift;
      }
      sum[k] += y[0] + y[1];
      varies |= static_cast<std::uint32_t>(y[0] != 0 || y[1] != 0) << k;
      const bool square = ((bits_of(y[0]) | bits_of(y[1])) & kNormalSquare) != 0;
      normal |= static_cast<std::uint32_t>(square) << k;
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const std::uint32_t word = paired(y[0], y[1], Bfloat{});
        *reinterpret_cast<std::uint32_t*>(to[p] + k * step * pitch) = word;
        y[0] -= float_of(word << 16);  // exact
        y[1] -= float_of(word & 0xffff0000u);
      }
    }
    if (bad) find_bad(layout, s0, state);
  }

  // Notes every bad element of what was loaded. Such updates are rare.
  __device__ void find_bad(const SmallLayout& layout, std::int64_t s0, State* state) const {
#pragma unroll
    for (int k = 0; k < slots; ++k) {
      unsigned bad = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool wrong = !(fabsf(widened<float>(x[k][half])) <= kLargestFloat);
        bad |= static_cast<unsigned>(wrong && used[half]) << half;
      }
      if (bad && k * step < layout.features) {
        note_on_axis(layout, state, first + k * step, s0 + 2 * pair, bad);
      }
    }
  }
};

__device__ std::uint32_t word(const std::uint16_t* at) {
  return *reinterpret_cast<const std::uint32_t*>(at);
}

// Sums (32, 32) of a warp.
using Fragment = float[2][4][4];

// sums += the products of parts p of the rows with parts q of the columns, of 16 staged samples
// from k on: the largest, p = q = 0, or the others that make float32's accuracy.
template <int stage, bool largest>
__device__ void multiply(Fragment& sums, const std::uint16_t* staged, int features, int row,
                         int col, int k) {
  constexpr int used = largest ? 1 : kParts, pitch = pitch_of(stage);
  const int lane = static_cast<int>(threadIdx.x) % kLanes, g = lane / 4, t = lane % 4;
  std::uint32_t b[used][4][2];
#pragma unroll
  for (int p = 0; p < used; ++p) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const auto* const at = staged + (p * features + col + 8 * n + g) * pitch + k + 2 * t;
      b[p][n][0] = word(at);
      b[p][n][1] = word(at + 8);
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int p = 0; p < used; ++p) {
      const auto* const at = staged + (p * features + row + 16 * m + g) * pitch + k + 2 * t;
      const std::uint32_t a[4] = {word(at), word(at + 8 * pitch), word(at + 8),
                                  word(at + 8 * pitch + 8)};
#pragma unroll
      for (int q = !largest && p == 0; q < used - p; ++q) {
#pragma unroll
        for (int n = 0; n < 4; ++n) mma(sums[m][n], a, b[q][n]);
      }
    }
  }
}

// sums += the products of the staged samples, of every `split`-th step from `share` on. Matrix
// units round towards zero, by more the larger a sum is: small products come first, into sums that
// start from nothing.
template <int stage>
__device__ void multiply_staged(Fragment& sums, const std::uint16_t* staged, int features, int row,
                                int col, int share, int split) {
  constexpr int steps = stage / 16;
  Fragment fresh = {};
  for (int step = share; step < steps; step += split) {
    multiply<stage, false>(fresh, staged, features, row, col, 16 * step);
  }
  for (int step = share; step < steps; step += split) {
    multiply<stage, true>(fresh, staged, features, row, col, 16 * step);
  }
#pragma unroll
  for (int e = 0; e < 32; ++e) sums[e / 16][e / 4 % 4][e % 4] += fresh[e / 16][e / 4 % 4][e % 4];
}

// Where a lane's e-th sum of a tile is.
__device__ int in_tile(int lane, int e) {
  const int m = e / 16, n = e / 4 % 4, c = e % 4;
  return (16 * m + lane / 4 + 8 * (c / 2)) * kSmallTile + 8 * n + 2 * (lane % 4) + c % 2;
}

template <class Source, int tiles_per_warp, int stage, int slots>
__global__ void __launch_bounds__(kThreads, tiles_per_warp == 1 ? 2 : 1)
    small_kernel(const __grid_constant__ Batch batch, const __grid_constant__ SmallLayout layout,
                 const __grid_constant__ SmallPlan plan, const __grid_constant__ Sums out,
                 double* products, State* state) {
  using Own = Reader<Source, stage, slots>;
  if (state->failed) return;
  const auto shared = shared_memory<Source>(layout);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, warp = thread / kLanes;
  const int share = warp % layout.split, slot = warp / layout.split;

  if (thread < layout.features) {
    shared.feature_at[thread] = static_cast<const Source*>(batch.features[0].data);
    shared.shift[thread] = 0;
    shared.varies[thread] = 0;
    for (int m = 0; m < layout.models; ++m) {
      const int f = thread - layout.start[m];
      if (f < 0 || f >= layout.width[m]) continue;
      const Features& features = batch.features[m];
      shared.feature_at[thread] =
          static_cast<const Source*>(features.data) + features.features.offset(f);
      shared.shift[thread] = static_cast<float>(batch.shift[m][f]);
    }
  }
  __syncthreads();

  const std::int64_t length = plan.windows * plan.window;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * length;
  const std::int64_t end = begin + length < batch.samples ? begin + length : batch.samples;
  double* const own = products + static_cast<std::int64_t>(blockIdx.x) * layout.tiles * kTileSize;
  auto* const floats = reinterpret_cast<float*>(shared.staged);
  double total = 0;  // of the feature of this thread's number
  Own reader(batch.by_samples);
  reader.fetch(batch, layout, shared, begin, end);
  for (std::int64_t window = begin; window < end; window += plan.window) {
    const std::int64_t last = window + plan.window < end ? window + plan.window : end;
    Fragment sums[tiles_per_warp] = {};
    for (std::int64_t s0 = window; s0 < last; s0 += stage) {
      reader.store(layout, shared, s0, state);
      __syncthreads();
      if (s0 + stage < end) reader.fetch(batch, layout, shared, s0 + stage, end);
#pragma unroll
      for (int t = 0; t < tiles_per_warp; ++t) {
        const int tile = slot + t * kSmallWarps;  // of more than one with a split of one
        if (tile >= layout.tiles) continue;
        multiply_staged<stage>(sums[t], shared.staged, layout.features,
                               layout.tile_row[tile] * kSmallTile,
                               layout.tile_col[tile] * kSmallTile, share, layout.split);
      }
      __syncthreads();
    }

    // Features' sums: of all pairs, in order.
#pragma unroll
    for (int k = 0; k < slots; ++k) {
      const int f = reader.first + k * Own::step;
      if (k * Own::step < layout.features) floats[f * Own::pairs + reader.pair] = reader.sum[k];
      reader.sum[k] = 0;
    }
    __syncthreads();
    if (thread < layout.features) {
      for (int p = 0; p < Own::pairs; ++p) {
        // Every thread begins elsewhere, so that banks are not met twice.
        total += static_cast<double>(floats[thread * Own::pairs + (p + thread) % Own::pairs]);
      }
    }
    __syncthreads();
    // Warps that share a tile, one after the other.
    for (int s = 1; s < layout.split; ++s) {
      if (share == s && slot < layout.tiles) {
#pragma unroll
        for (int e = 0; e < 32; ++e) {
          floats[slot * kTileSize + e * kLanes + lane] = sums[0][e / 16][e / 4 % 4][e % 4];
        }
      }
      __syncthreads();
      if (share == 0 && slot < layout.tiles) {
#pragma unroll
        for (int e = 0; e < 32; ++e) {
          sums[0][e / 16][e / 4 % 4][e % 4] += floats[slot * kTileSize + e * kLanes + lane];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int t = 0; t < tiles_per_warp; ++t) {
      const int tile = slot + t * kSmallWarps;  // of more than one with a split of one
      if (tile >= layout.tiles || share != 0) continue;
#pragma unroll
      for (int e = 0; e < 32; ++e) {
        double& all = own[tile * kTileSize + in_tile(lane, e)];
        all = (window > begin ? all : 0) + static_cast<double>(sums[t][e / 16][e / 4 % 4][e % 4]);
      }
    }
  }

#pragma unroll
  for (int k = 0; k < slots; ++k) {
    const int found = reader.normal >> k & 1u ? kVaries : reader.varies >> k & 1u ? kSlightly : 0;
    if (found) atomicMax(&shared.varies[reader.first + k * Own::step], found);
  }
  __syncthreads();
  if (thread < layout.features) {
    for (int m = 0; m < layout.models; ++m) {
      const int f = thread - layout.start[m];
      if (f < 0 || f >= layout.width[m]) continue;
      const double all = batch.shift[m][f];
      // A spread that says how far elements vary: see derive_centres.
      const int varies = shared.varies[thread];
      const double most = varies == kVaries ? static_cast<double>(infinity32()) : 0x1p-64;
      out.partials[m][static_cast<std::int64_t>(blockIdx.x) * layout.width[m] + f] =
          varies ? Partial{total, all - most, all + most} : Partial{0, all, all};
    }
  }
  if (thread == 0) out.selected[blockIdx.x] = end - begin;
}

template <class Source>
void launch_small(const Batch& batch, const SmallLayout& layout, const SmallPlan& plan,
                  const Sums& sums, double* products, State* state, cudaStream_t stream) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  // The limit is the kernel's, not the launch's: always the same, whatever other threads launch.
  const int most = static_cast<int>(most_shared(device));
  const auto run = [&](auto kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
          "cudaFuncSetAttribute");
    launch(kernel, static_cast<unsigned>(plan.blocks), kThreads, shared_bytes(layout), stream,
           batch, layout, plan, sums, products, state);
  };
  // See small_layout.
  if (layout.stage == 32) return run(small_kernel<Source, 3, 32, 16>);
  if (layout.features > 64) return run(small_kernel<Source, 2, 64, 16>);
  return run(small_kernel<Source, 1, 64, 8>);
}

}  // namespace

bool small_fits(const SmallLayout& layout, int device) {
  return shared_bytes(layout) <= most_shared(device);
}

void small_products(const Batch& batch, const SmallLayout& layout, const SmallPlan& plan,
                    const Sums& sums, double* products, State* state, cudaStream_t stream) {
  const auto run = [&](auto launch) { launch(batch, layout, plan, sums, products, state, stream); };
  switch (batch.features[0].dtype) {
    case DType::float16:
      return run(launch_small<Half>);
    case DType::bfloat16:
      return run(launch_small<Bfloat>);
    default:
      return run(launch_small<float>);
  }
}

}  // namespace ccamerge::cuda
