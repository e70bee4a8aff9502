#include "cuda/dynamic_shared.hpp"
#include "cuda/mma.hpp"
#include "cuda/small.hpp"
#include "cuda/state_updates.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kWarps = kSmallWarps, kLanes = 32, kThreads = kWarps * kLanes;
constexpr int kSamples = kSmallSamples;
constexpr int kSteps = kSamples / 16;
constexpr int kPitch = kSamples + 8;         // so that fragments' loads meet no bank twice
constexpr std::size_t kStaticShared = 1024;  // at least what the kernel has of it

std::size_t shared_bytes(const SmallLayout& layout, Form form) {
  const int parts = form == Form::planes ? 3 : 1;
  return static_cast<std::size_t>(parts * layout.features * kPitch) * sizeof(std::uint16_t) +
         static_cast<std::size_t>(layout.features) * (sizeof(int) + sizeof(float)) +
         static_cast<std::size_t>(layout.models) * kSamples * sizeof(std::int64_t) + 64;
}

std::size_t most_shared(int device) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return static_cast<std::size_t>(bytes) - kStaticShared;
}

// What a thread block works with in shared memory.
struct Shared {
  std::int64_t* sample_at;  // (models, kSamples)
  float* shift;             // (features,)
  int* varies;              // (features,) whether any element differs from the shift
  std::uint16_t* staged;    // (parts, features, kPitch)
};

__device__ Shared shared_memory(const SmallLayout& layout) {
  Shared out;
  out.sample_at = reinterpret_cast<std::int64_t*>(dynamic_shared());
  out.shift = reinterpret_cast<float*>(out.sample_at + layout.models * kSamples);
  out.varies = reinterpret_cast<int*>(out.shift + layout.features);
  auto* const end = reinterpret_cast<unsigned char*>(out.varies + layout.features);
  const auto address = reinterpret_cast<std::uintptr_t>(end);
  out.staged = reinterpret_cast<std::uint16_t*>(end + (16 - address % 16) % 16);
  return out;
}

// The parts of an element that is given as y = x - shift.
template <class Number, int parts>
__device__ void part_bits(float y, std::uint32_t (&bits)[parts]) {
  if constexpr (parts == 1) {
    bits[0] = bits16(narrowed(y, Number{}));
  } else {
    const Split split_y = split(y);
#pragma unroll
    for (int p = 0; p < parts; ++p) bits[p] = split_y.parts[p].bits;
  }
}

// Reads one model's features of kSamples samples from s0 on and leaves their parts, samples side by
// side. Two neighbouring samples make one word. A warp takes what lies side by side in memory:
// samples of a feature, or eight features of four pairs of samples.
template <class Number, int parts, class Source>
__device__ void stage(const Source* data, const Features& features, const SmallLayout& layout,
                      const Shared& shared, const bool* chosen, int model, int number,
                      std::int64_t s0, State* state) {
  constexpr int pairs = kSamples / 2, side = 8, pairs_aside = kLanes / side;
  const int start = layout.start[model], width = layout.width[model];
  const std::int64_t* const sample_at = shared.sample_at + model * kSamples;
  const int filled = features.by_samples ? width : (width + side - 1) / side * side;
  for (int e = static_cast<int>(threadIdx.x); e < filled * pairs; e += kThreads) {
    const int lane = e % kLanes, group = e / kLanes;
    const int f =
        features.by_samples ? e / pairs : group / (pairs / pairs_aside) * side + lane % side;
    const int pair =
        features.by_samples ? e % pairs : group % (pairs / pairs_aside) * pairs_aside + lane / side;
    if (f >= width) continue;
    const std::int64_t feature_at = features.features.offset(f);
    std::uint32_t words[parts] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * pair + half;
      if (!chosen[i]) continue;
      const auto x = widened<float>(data[sample_at[i] + feature_at]);
      if (!(x <= kLargestFloat && x >= -kLargestFloat)) note(state, number, s0 + i, f);
      const float y = x - shared.shift[start + f];
      if (y != 0) shared.varies[start + f] = 1;
      std::uint32_t bits[parts];
      part_bits<Number>(y, bits);
#pragma unroll
      for (int p = 0; p < parts; ++p) words[p] |= bits[p] << (16 * half);
    }
#pragma unroll
    for (int p = 0; p < parts; ++p) {
      const int at = (p * layout.features + start + f) * kPitch + 2 * pair;
      *reinterpret_cast<std::uint32_t*>(shared.staged + at) = words[p];
    }
  }
}

__device__ std::uint32_t word(const std::uint16_t* at) {
  return *reinterpret_cast<const std::uint32_t*>(at);
}

// Sums (32, 32) of a warp.
using Fragment = float[2][4][4];

// sums += the products of parts p of the rows with parts q of the columns, of 16 staged samples
// from k on: the largest, p = q = 0, or the others that make float32's accuracy.
template <class Number, int parts, bool largest>
__device__ void multiply(Fragment& sums, const std::uint16_t* staged, int features, int row,
                         int col, int k) {
  constexpr int used = largest ? 1 : parts;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, g = lane / 4, t = lane % 4;
  std::uint32_t b[used][4][2];
#pragma unroll
  for (int p = 0; p < used; ++p) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const auto* const at = staged + (p * features + col + 8 * n + g) * kPitch + k + 2 * t;
      b[p][n][0] = word(at);
      b[p][n][1] = word(at + 8);
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int p = 0; p < used; ++p) {
      const auto* const at = staged + (p * features + row + 16 * m + g) * kPitch + k + 2 * t;
      const std::uint32_t a[4] = {word(at), word(at + 8 * kPitch), word(at + 8),
                                  word(at + 8 * kPitch + 8)};
#pragma unroll
      for (int q = !largest && p == 0; q < used - p; ++q) {
#pragma unroll
        for (int n = 0; n < 4; ++n) mma<Number>(sums[m][n], a, b[q][n]);
      }
    }
  }
}

// sums += the products of the staged samples, of every `split`-th step from `share` on. Matrix
// units round towards zero, by more the larger a sum is: small products come first, into sums that
// start from nothing.
template <class Number, int parts>
__device__ void multiply_staged(Fragment& sums, const std::uint16_t* staged, int features, int row,
                                int col, int share, int split) {
  Fragment fresh = {};
  if constexpr (parts > 1) {
    for (int step = share; step < kSteps; step += split) {
      multiply<Number, parts, false>(fresh, staged, features, row, col, 16 * step);
    }
  }
  for (int step = share; step < kSteps; step += split) {
    multiply<Number, parts, true>(fresh, staged, features, row, col, 16 * step);
  }
#pragma unroll
  for (int e = 0; e < 32; ++e) sums[e / 16][e / 4 % 4][e % 4] += fresh[e / 16][e / 4 % 4][e % 4];
}

template <class Number, int parts, int tiles_per_warp>
__global__ void __launch_bounds__(kThreads)
    small_kernel(const __grid_constant__ Batch batch, const __grid_constant__ SmallLayout layout,
                 const __grid_constant__ SmallPlan plan, const __grid_constant__ Sums out,
                 double* products, State* state) {
  __shared__ bool chosen[kSamples];
  if (state->failed) return;
  const Shared shared = shared_memory(layout);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, warp = thread / kLanes;
  const int share = warp % layout.split, slot = warp / layout.split;
  constexpr int slots = kWarps;  // with a split of one

  for (int e = thread; e < parts * layout.features * kPitch; e += kThreads) shared.staged[e] = 0;
  for (int f = thread; f < layout.features; f += kThreads) shared.varies[f] = 0;
  __syncthreads();
  const std::uint16_t one = one16(Number{});
  for (int i = thread; i < kSamples; i += kThreads) shared.staged[i] = one;
  for (int m = 0; m < layout.models; ++m) {
    for (int f = thread; f < layout.width[m]; f += kThreads) {
      const int at = layout.start[m] + f;
      shared.shift[at] = static_cast<float>(batch.shift[m][f]);
    }
  }

  const std::int64_t part = static_cast<std::int64_t>(blockIdx.x) * layout.split + share;
  double* const own = products + part * layout.tiles * kSmallTile * kSmallTile;
  std::int64_t selected = 0;
  for (std::int64_t w = 0; w < plan.windows; ++w) {
    const std::int64_t begin =
        (static_cast<std::int64_t>(blockIdx.x) * plan.windows + w) * plan.window;
    const std::int64_t end =
        begin + plan.window < batch.samples ? begin + plan.window : batch.samples;
    Fragment sums[tiles_per_warp] = {};
    for (std::int64_t s0 = begin; s0 < end; s0 += kSamples) {
      // Nobody reads these any more: the products of the samples before need the staged ones only.
      for (int e = thread; e < layout.models * kSamples; e += kThreads) {
        const int i = e % kSamples;
        const std::int64_t s = s0 + i;
        const bool used = s < end && (!batch.mask || batch.mask[s]);
        if (e < kSamples) {
          chosen[i] = used;
          selected += used;
        }
        shared.sample_at[e] = used ? batch.features[e / kSamples].samples.offset(s) : 0;
      }
      __syncthreads();
      for (int m = 0; m < layout.models; ++m) {
        const Features& features = batch.features[m];
        if constexpr (parts == 1) {
          stage<Number, parts>(static_cast<const Number*>(features.data), features, layout, shared,
                               chosen, m, batch.first + m, s0, state);
        } else {
          with_elements(features, [&](const auto* data) {
            stage<Number, parts>(data, features, layout, shared, chosen, m, batch.first + m, s0,
                                 state);
          });
        }
      }
      __syncthreads();
#pragma unroll
      for (int t = 0; t < tiles_per_warp; ++t) {
        const int tile = slot + t * slots;
        if (tile >= layout.tiles) continue;
        multiply_staged<Number, parts>(sums[t], shared.staged, layout.features,
                                       layout.tile_row[tile] * kSmallTile,
                                       layout.tile_col[tile] * kSmallTile, share, layout.split);
      }
    }
#pragma unroll
    for (int t = 0; t < tiles_per_warp; ++t) {
      const int tile = slot + t * slots;
      if (tile >= layout.tiles) continue;
      double* const to = own + tile * kSmallTile * kSmallTile;
#pragma unroll
      for (int e = 0; e < 32; ++e) {
        const int m = e / 16, n = e / 4 % 4, c = e % 4;
        const int i = 16 * m + lane / 4 + 8 * (c / 2), j = 8 * n + 2 * (lane % 4) + c % 2;
        double& total = to[i * kSmallTile + j];
        total = (w > 0 ? total : 0) + static_cast<double>(sums[t][m][n][c]);
      }
    }
  }

  // Row 0 of the first row of tiles holds every feature's sum.
  __syncthreads();
  for (int m = 0; m < layout.models; ++m) {
    for (int e = thread; e < layout.width[m] * layout.split; e += kThreads) {
      const int f = e % layout.width[m], s = e / layout.width[m];
      const int at = layout.start[m] + f, tile = at / kSmallTile;  // of row 0: in order
      const std::int64_t p = static_cast<std::int64_t>(blockIdx.x) * layout.split + s;
      const double sum =
          products[(p * layout.tiles + tile) * kSmallTile * kSmallTile + at % kSmallTile];
      const double all = batch.shift[m][f], end = static_cast<double>(infinity32());
      out.partials[m][p * layout.width[m] + f] =
          shared.varies[at] ? Partial{sum, -end, end} : Partial{0, all, all};
    }
  }
  __shared__ long long counts[kSamples];
  if (thread < kSamples) counts[thread] = selected;
  __syncthreads();
  if (thread < layout.split) {
    long long total = 0;
    for (int i = 0; i < kSamples && thread == 0; ++i) total += counts[i];
    out.selected[static_cast<std::int64_t>(blockIdx.x) * layout.split + thread] = total;
  }
}

template <class Number, int parts>
void launch_small(const Batch& batch, Form form, const SmallLayout& layout, const SmallPlan& plan,
                  const Sums& sums, double* products, State* state, cudaStream_t stream) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  // The limit is the kernel's, not the launch's: always the same, whatever other threads launch.
  const int most = static_cast<int>(most_shared(device));
  const auto run = [&](auto kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
          "cudaFuncSetAttribute");
    launch(kernel, static_cast<unsigned>(plan.blocks), kThreads, shared_bytes(layout, form), stream,
           batch, layout, plan, sums, products, state);
  };
  const int per_warp = ceil_div(layout.tiles, kWarps);
  if (per_warp <= 1) return run(small_kernel<Number, parts, 1>);
  if (per_warp <= 2) return run(small_kernel<Number, parts, 2>);
  return run(small_kernel<Number, parts, 4>);
}

}  // namespace

bool small_fits(const SmallLayout& layout, Form form, int device) {
  return form != Form::doubles && shared_bytes(layout, form) <= most_shared(device);
}

void small_products(const Batch& batch, Form form, const SmallLayout& layout, const SmallPlan& plan,
                    const Sums& sums, double* products, State* state, cudaStream_t stream) {
  const auto run = [&](auto launch) {
    launch(batch, form, layout, plan, sums, products, state, stream);
  };
  if (form == Form::planes) return run(launch_small<Bfloat, 3>);
  const bool half = batch.features[0].dtype == DType::float16;
  return half ? run(launch_small<Half, 1>) : run(launch_small<Bfloat, 1>);
}

}  // namespace ccamerge::cuda
