// The conversion of features into operands.
#include "cuda/moments/elements.hpp"
#include "cuda/moments/operands.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 32, kWarps = kThreads / kLanes;
constexpr int kTile = 64;  // samples and features of a tile that is turned
constexpr int kGroup = kSampleGroup;

struct alignas(16) Eight {
  std::uint32_t pairs[4];
};
struct alignas(16) Two {
  double of[2];
};

// Writes a group of a feature's neighbouring samples, given as x - shift, to each slab; `at` is the
// first one's place in the first slab.
template <Form form, class T>
__device__ void store(void* data, std::int64_t at, std::int64_t rows, DType dtype,
                      const T (&y)[kGroup]) {
  if constexpr (form == Form::doubles) {
    auto* const to = reinterpret_cast<Two*>(static_cast<double*>(data) + at);
#pragma unroll
    for (int i = 0; i < kGroup / 2; ++i) to[i] = {{y[2 * i], y[2 * i + 1]}};
  } else {
    auto* const to = static_cast<std::uint16_t*>(data) + at;
    Eight high, low;
#pragma unroll
    for (int i = 0; i < kGroup / 2; ++i) {
      const T a = y[2 * i], b = y[2 * i + 1];
      if constexpr (form == Form::narrow) {
        high.pairs[i] = dtype == DType::float16 ? paired(a, b, Half{}) : paired(a, b, Bfloat{});
      } else {
        const Halves one = halves(a), other = halves(b);
        high.pairs[i] = one.high.bits | static_cast<std::uint32_t>(other.high.bits) << 16;
        low.pairs[i] = one.low.bits | static_cast<std::uint32_t>(other.low.bits) << 16;
      }
    }
    *reinterpret_cast<Eight*>(to) = high;
    if constexpr (form == Form::singles) {
      *reinterpret_cast<Eight*>(to + rows) = low;
      *reinterpret_cast<Eight*>(to + 2 * rows) = high;
      *reinterpret_cast<Eight*>(to + 3 * rows) = high;
    }
  }
}

// Where a feature's samples from the given one of this pass on go.
template <Form form>
__device__ std::int64_t place(const Operands& to, int model, std::int64_t feature,
                              std::int64_t sample) {
  constexpr int slabs = slabs_of(form);
  // 32-bit divisions are several times faster.
  const std::int64_t chunk = sample <= 0xffffffffll ? static_cast<std::uint32_t>(sample) /
                                                          static_cast<std::uint32_t>(to.rows)
                                                    : sample / to.rows;
  return (chunk * to.width + to.start[model] + feature) * slabs * to.rows + sample -
         chunk * to.rows;
}

// Features whose neighbours in memory are samples: a warp takes one, a thread a group of samples.
template <class T, Form form>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Operands to,
                std::int64_t first, std::int64_t last, std::int64_t filled, const State* state) {
  if (state->failed) return;
  const int z = static_cast<int>(blockIdx.z), thread = static_cast<int>(threadIdx.x);
  const Features& features = batch.features[z];
  const std::int64_t f = static_cast<std::int64_t>(blockIdx.y) * kWarps + thread / kLanes;
  const std::int64_t row =
      (static_cast<std::int64_t>(blockIdx.x) * kLanes + thread % kLanes) * kGroup;
  if (f >= features.count || row >= filled) return;
  const T shift = static_cast<T>(batch.shift[z][f]);
  const T scale = form == Form::singles ? static_cast<T>(batch.scale[z][f]) : T{1};
  const std::int64_t s = first + row, feature_at = features.features.offset(f);
  const unsigned used = wanted_samples<kGroup>(batch.mask, s, last);
  T y[kGroup] = {};
  with_elements(features, [&](const auto* data) {
    if (!used) return;
    if (features.grouped) {
      load_group(data + features.samples.offset(s) + feature_at, features.step, features.vectors,
                 used, y);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (used >> i & 1u) y[i] = widened<T>(data[features.samples.offset(s + i) + feature_at]);
      }
    }
  });
#pragma unroll
  for (int i = 0; i < kGroup; ++i) y[i] = used >> i & 1u ? (y[i] - shift) * scale : T{0};
  store<form>(to.data, place<form>(to, z, f, row), to.rows, features.dtype, y);
}

// Features that lie side by side: a block turns a tile.
template <class T, Form form>
__global__ void __launch_bounds__(kThreads)
    turn_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Operands to,
                std::int64_t first, std::int64_t last, std::int64_t filled, const State* state) {
  __shared__ T tile[kTile][kTile + 1];  // (features, samples)
  __shared__ std::int64_t sample_at[kTile], feature_at[kTile];
  __shared__ bool used[kTile];
  __shared__ T shift[kTile], scale[kTile];
  if (state->failed) return;
  const int z = static_cast<int>(blockIdx.z), thread = static_cast<int>(threadIdx.x);
  const Features& features = batch.features[z];
  const std::int64_t feature0 = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  if (feature0 >= features.count) return;
  const int width =
      features.count - feature0 < kTile ? static_cast<int>(features.count - feature0) : kTile;
  if (thread < kTile) {
    const std::int64_t s = first + row0 + thread;
    used[thread] = s < last && (!batch.mask || batch.mask[s]);
    sample_at[thread] = used[thread] ? features.samples.offset(s) : 0;
  } else if (thread < 2 * kTile) {
    const int j = thread - kTile;
    const std::int64_t f = feature0 + (j < width ? j : 0);
    feature_at[j] = features.features.offset(f);
    shift[j] = static_cast<T>(batch.shift[z][f]);
    scale[j] = form == Form::singles ? static_cast<T>(batch.scale[z][f]) : T{1};
  }
  __syncthreads();

  constexpr int across = kTile / kFeatureGroup, down = kThreads / across;
  const int own = thread % across * kFeatureGroup;
  const unsigned there = own + kFeatureGroup <= width ? (1u << kFeatureGroup) - 1
                         : own < width                ? (1u << (width - own)) - 1
                                                      : 0;
  T x[kTile / down][kFeatureGroup] = {};
  with_elements(features, [&](const auto* data) {
#pragma unroll
    for (int k = 0; k < kTile / down; ++k) {
      const int i = thread / across + k * down;
      if (!there || !used[i]) continue;
      if (features.grouped) {
        load_group(data + sample_at[i] + feature_at[own], features.step, features.vectors, there,
                   x[k]);
      } else {
#pragma unroll
        for (int j = 0; j < kFeatureGroup; ++j) {
          if (there >> j & 1u) x[k][j] = widened<T>(data[sample_at[i] + feature_at[own + j]]);
        }
      }
    }
  });
#pragma unroll
  for (int k = 0; k < kTile / down; ++k) {
    const int i = thread / across + k * down;
#pragma unroll
    for (int j = 0; j < kFeatureGroup; ++j) {
      tile[own + j][i] = used[i] ? (x[k][j] - shift[own + j]) * scale[own + j] : T{0};
    }
  }
  __syncthreads();
  constexpr int groups = kTile / kGroup;
#pragma unroll
  for (int e = thread; e < kTile * groups; e += kThreads) {
    const int j = e / groups, i = e % groups * kGroup;
    if (j >= width || row0 + i >= filled) continue;
    T y[kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) y[k] = tile[j][i + k];
    store<form>(to.data, place<form>(to, z, feature0 + j, row0 + i), to.rows, features.dtype, y);
  }
}

}  // namespace

void pack(const Batch& batch, Form form, const Operands& to, std::int64_t first, std::int64_t last,
          const State* state, cudaStream_t stream) {
  const std::int64_t filled = ceil_div(last - first, to.rows) * to.rows;
  const std::int64_t samples = batch.by_samples ? kLanes * kGroup : kTile;
  const std::int64_t side = batch.by_samples ? kWarps : kTile;
  const dim3 grid(static_cast<unsigned>(ceil_div(filled, samples)),
                  static_cast<unsigned>(ceil_div(batch.widest(), side)),
                  static_cast<unsigned>(batch.models));
  const auto run = [&](auto pack, auto turn) {
    launch(batch.by_samples ? pack : turn, grid, kThreads, 0, stream, batch, to, first, last,
           filled, state);
  };
  switch (form) {
    case Form::narrow:
      return run(pack_kernel<float, Form::narrow>, turn_kernel<float, Form::narrow>);
    case Form::singles:
      return run(pack_kernel<float, Form::singles>, turn_kernel<float, Form::singles>);
    case Form::doubles:
      return run(pack_kernel<double, Form::doubles>, turn_kernel<double, Form::doubles>);
  }
}

}  // namespace ccamerge::cuda
