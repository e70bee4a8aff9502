// The sums of an update's samples.
#include <algorithm>

#include "cuda/elements.hpp"
#include "cuda/state_updates.hpp"
#include "cuda/statistics.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 32;
constexpr std::int64_t kLeastPart = 256, kMostParts = 1024;

constexpr double kLargestDouble = 1e150;  // beyond it, sums of squares could overflow
__device__ float largest(float) { return kLargestFloat; }
__device__ double largest(double) { return kLargestDouble; }

// What a block looks at: so many features by all samples of its part.
template <bool by_samples>
struct Shape;
// A warp takes groups of samples of one feature.
template <>
struct Shape<true> {
  static constexpr int features = kThreads / kLanes, across = kLanes;
  static constexpr int feature_group = 1, sample_group = kSampleGroup;
  static constexpr int ahead = 2;  // groups that a thread loads before it adds
};
// Neighbouring threads take groups of features of one sample.
template <>
struct Shape<false> {
  static constexpr int features = 64, across = kThreads / (features / kFeatureGroup);
  static constexpr int feature_group = kFeatureGroup, sample_group = 1;
  static constexpr int ahead = 4;
};

// What one thread sees of a feature: the sum of x - about, and x's lowest and highest. A part of
// the sum is kept in the elements' own type, which is faster, and short.
template <class T>
struct Seen {
  double sum = 0;
  T part = 0, about = 0;
  T lowest = static_cast<T>(infinity32()), highest = static_cast<T>(-infinity32());

  __device__ void include(T x) {
    part += x - about;
    lowest = fmin(lowest, x);  // of a number and what is not one: the number
    highest = fmax(highest, x);
  }
  __device__ void collect() {
    sum += static_cast<double>(part);
    part = 0;
  }
  // What is not a number is left in the sum.
  __device__ bool bad() const {
    return !(lowest >= -largest(T{}) && highest <= largest(T{}) && sum - sum == 0);
  }
};

// One thread's share of a block's work.
template <class T, bool by_samples>
struct Look {
  using S = Shape<by_samples>;
  static constexpr int group = S::feature_group * S::sample_group;
  static constexpr int stride = S::across * S::sample_group;
  static constexpr int kept = 4;  // rounds of `ahead` groups between two parts of the sum

  const Batch& batch;
  const Features& features;
  std::int64_t f0, begin, end;  // the block's part of the samples
  int skip;                     // samples of it before this thread's first
  std::int64_t feature_at[S::feature_group];
  unsigned there;  // which of the group's features are

  __device__ Look(const Batch& batch_, int z, std::int64_t f, std::int64_t first, std::int64_t last,
                  int skip_)
      : batch(batch_),
        features(batch_.features[z]),
        f0(f),
        begin(first),
        end(last),
        skip(skip_),
        feature_at{},
        there(0) {
#pragma unroll
    for (int j = 0; j < S::feature_group; ++j) {
      if (f0 + j >= features.count) continue;
      there |= 1u << j;
      feature_at[j] = features.features.offset(f0 + j);
    }
  }

  static constexpr unsigned all = (1u << S::sample_group) - 1;

  // Which of the samples from s on are wanted.
  __device__ unsigned used(std::int64_t s) const {
    if (!batch.mask && s + S::sample_group <= end) return all;
    unsigned found = 0;
#pragma unroll
    for (int i = 0; i < S::sample_group; ++i) {
      if (s + i < end && (!batch.mask || batch.mask[s + i])) found |= 1u << i;
    }
    return found;
  }

  // Where the `ahead` groups of samples from s on are, and which of them are wanted. Of features
  // side by side, threads that read the same samples find out for each other.
  __device__ void find(std::int64_t s, std::int64_t (&at)[S::ahead],
                       unsigned (&samples)[S::ahead]) const {
    if constexpr (by_samples) {
#pragma unroll
      for (int a = 0; a < S::ahead; ++a) {
        samples[a] = used(s + a * stride);
        at[a] = samples[a] ? features.samples.offset(s + a * stride) : 0;
      }
    } else {
      constexpr int side = S::features / S::feature_group;
      const int lane = static_cast<int>(threadIdx.x) % kLanes, own = lane % side % S::ahead;
      const unsigned found = used(s + own * stride);
      const std::int64_t place = found ? features.samples.offset(s + own * stride) : 0;
#pragma unroll
      for (int a = 0; a < S::ahead; ++a) {
        samples[a] = __shfl_sync(~0u, found, lane / side * side + a);
        at[a] = __shfl_sync(~0u, place, lane / side * side + a);
      }
    }
  }

  template <class Source>
  __device__ void load(const Source* data, std::int64_t s, std::int64_t at, unsigned samples,
                       T (&x)[group]) const {
    const unsigned wanted = by_samples ? samples : there;
    if (features.grouped) {
      load_group(data + at + feature_at[0], features.step, features.vectors, wanted, x);
      return;
    }
#pragma unroll
    for (int e = 0; e < group; ++e) {
      const std::int64_t from =
          by_samples ? features.samples.offset(s + e) + feature_at[0] : at + feature_at[e];
      x[e] = wanted >> e & 1u ? widened<T>(data[from]) : T{0};
    }
  }

  // All threads of a block do as many rounds.
  template <class Source>
  __device__ void run(const Source* data, Seen<T> (&seen)[S::feature_group], int* count) const {
    int rounds = 0;
    for (std::int64_t s0 = begin; s0 < end; s0 += stride * S::ahead) {
      const std::int64_t s = s0 + skip;
      T x[S::ahead][group];
      std::int64_t at[S::ahead];
      unsigned samples[S::ahead];
      find(s, at, samples);
#pragma unroll
      for (int a = 0; a < S::ahead; ++a) {
        if (samples[a]) load(data, s + a * stride, at[a], samples[a], x[a]);
      }
#pragma unroll
      for (int a = 0; a < S::ahead; ++a) {
        if (samples[a] == all) {
#pragma unroll
          for (int e = 0; e < group; ++e) seen[by_samples ? 0 : e].include(x[a][e]);
        } else {
#pragma unroll
          for (int e = 0; e < group; ++e) {
            if (samples[a] >> (by_samples ? e : 0) & 1u) seen[by_samples ? 0 : e].include(x[a][e]);
          }
        }
        *count += __popc(samples[a]);
      }
      if (++rounds % kept != 0) continue;
#pragma unroll
      for (int j = 0; j < S::feature_group; ++j) seen[j].collect();
    }
#pragma unroll
    for (int j = 0; j < S::feature_group; ++j) seen[j].collect();
  }

  // Notes every bad element. Such updates are rare.
  template <class Source>
  __device__ void find_bad(const Source* data, int model, State* state) const {
    for (std::int64_t s = begin + skip; s < end; s += stride) {
      const unsigned samples = used(s);
      for (int e = 0; e < group; ++e) {
        const int i = by_samples ? e : 0, j = by_samples ? 0 : e;
        if (!(samples >> i & 1u) || !(there >> j & 1u)) continue;
        const T x = widened<T>(data[features.samples.offset(s + i) + feature_at[j]]);
        if (!(x <= largest(T{}) && x >= -largest(T{}))) note(state, model, s + i, f0 + j);
      }
    }
  }
};

template <class T, bool by_samples>
__global__ void __launch_bounds__(kThreads)
    look_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Sums sums,
                std::int64_t per_part, State* state) {
  using S = Shape<by_samples>;
  __shared__ Partial shared[S::across][S::features];
  __shared__ int counts[kThreads];
  if (state->failed) return;
  const int z = static_cast<int>(blockIdx.z), thread = static_cast<int>(threadIdx.x);
  const Features& features = batch.features[z];
  const std::int64_t feature0 = static_cast<std::int64_t>(blockIdx.y) * S::features;
  if (feature0 >= features.count) return;
  // By samples, lanes lie along the samples; else along the features.
  constexpr int per_row = S::features / S::feature_group;
  const int own = (by_samples ? thread / S::across : thread % per_row) * S::feature_group;
  const int across = by_samples ? thread % S::across : thread / per_row;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * per_part;
  const std::int64_t end = begin + per_part < batch.samples ? begin + per_part : batch.samples;
  const Look<T, by_samples> mine(batch, z, feature0 + own, begin, end, across * S::sample_group);

  Seen<T> seen[S::feature_group];
  int count = 0;
  with_elements(features, [&](const auto* data) {
  // Sums are formed about some element: far from zero they would lose what features vary by.
#pragma unroll
    for (int j = 0; j < S::feature_group; ++j) {
      if (!(mine.there >> j & 1u)) continue;
      const T first = widened<T>(data[features.samples.offset(0) + mine.feature_at[j]]);
      if (first <= largest(T{}) && first >= -largest(T{})) seen[j].about = first;
    }
    mine.run(data, seen, &count);
    bool bad = false;
#pragma unroll
    for (int j = 0; j < S::feature_group; ++j) bad |= count > 0 && seen[j].bad();
    if (bad) mine.find_bad(data, batch.first + z, state);
  });
#pragma unroll
  for (int j = 0; j < S::feature_group; ++j) {
    shared[across][own + j] = {seen[j].sum + count * static_cast<double>(seen[j].about),
                               static_cast<double>(seen[j].lowest),
                               static_cast<double>(seen[j].highest)};
  }
  counts[thread] = own == 0 ? count : 0;
  __syncthreads();
  if (thread < S::features && feature0 + thread < features.count) {
    Partial all = shared[0][thread];
    for (int a = 1; a < S::across; ++a) {
      const Partial& other = shared[a][thread];
      all.sum += other.sum;
      all.lowest = other.lowest < all.lowest ? other.lowest : all.lowest;
      all.highest = other.highest > all.highest ? other.highest : all.highest;
    }
    sums.partials[z][static_cast<std::int64_t>(blockIdx.x) * features.count + feature0 + thread] =
        all;
  }
  if (batch.first > 0 || z > 0 || blockIdx.y > 0) return;
  if (thread < kLanes) {
    for (int t = thread + kLanes; t < kThreads; t += kLanes) counts[thread] += counts[t];
  }
  __syncthreads();
  if (thread == 0) {
    long long total = 0;
    for (int t = 0; t < kLanes; ++t) total += counts[t];
    sums.selected[blockIdx.x] = total;
  }
}

std::int64_t widest(const Batch& batch) {
  std::int64_t width = 0;
  for (int i = 0; i < batch.models; ++i) width = std::max(width, batch.features[i].count);
  return width;
}

// Blocks for each part of the samples.
std::int64_t feature_blocks(const Batch& batch) {
  const std::int64_t side = batch.by_samples ? Shape<true>::features : Shape<false>::features;
  return ceil_div(widest(batch), side);
}

}  // namespace

std::int64_t look_parts(const Batch& batch, int multiprocessors) {
  constexpr std::int64_t blocks_each = 16;  // of a multiprocessor: two rounds
  const std::int64_t wanted =
      ceil_div(blocks_each * multiprocessors, feature_blocks(batch) * batch.models);
  return std::clamp<std::int64_t>(std::min(wanted, batch.samples / kLeastPart), 1, kMostParts);
}

void look(const Batch& batch, const Sums& sums, State* state, cudaStream_t stream) {
  bool wide = false;
  for (int i = 0; i < batch.models; ++i) wide |= batch.features[i].dtype == DType::float64;
  // Parts begin with a group.
  const std::int64_t per_part =
      ceil_div<std::int64_t>(ceil_div(batch.samples, sums.parts), kSampleGroup) * kSampleGroup;
  const dim3 grid(static_cast<unsigned>(sums.parts), static_cast<unsigned>(feature_blocks(batch)),
                  static_cast<unsigned>(batch.models));
  const auto run = [&](auto kernel) {
    launch(kernel, grid, kThreads, 0, stream, batch, sums, per_part, state);
  };
  if (batch.by_samples) {
    wide ? run(look_kernel<double, true>) : run(look_kernel<float, true>);
  } else {
    wide ? run(look_kernel<double, false>) : run(look_kernel<float, false>);
  }
}

}  // namespace ccamerge::cuda
