// The sums of an update's samples.
#include <algorithm>

#include "cuda/moments/elements.hpp"
#include "cuda/moments/state_updates.hpp"
#include "cuda/moments/statistics.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 32;
constexpr std::int64_t kLeastPart = 256, kMostParts = 1024;

constexpr double kLargestDouble = 1e145;  // beyond it, sums of squares could overflow
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

// Where so many groups of samples are, and which of their samples are wanted: a thread finds it out
// for each.
struct Places {
  std::int64_t at[kThreads];
  std::uint8_t wanted[kThreads];
};

// What one thread sees of a feature: the sum of x - about, and x's lowest and highest. A part of
// the sum is kept in the elements' own type, which is faster, and short.
template <class T>
struct Seen {
  double sum = 0;
  T part = 0, about = 0;
  T lowest = static_cast<T>(infinity32()), highest = static_cast<T>(-infinity32());

  // Sums are formed about the first element: far from zero they would lose what features vary by.
  __device__ void begin(T first) {
    about = first <= largest(T{}) && first >= -largest(T{}) ? first : T{0};
  }
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

// Notes every bad element of some features and samples. Such updates are rare.
template <class T, class Source>
__device__ CCAMERGE_NOINLINE void find_bad(const Source* data, const Batch& batch, int z,
                                           std::int64_t f0, int feature_count, std::int64_t begin,
                                           std::int64_t end, State* state) {
  const Features& features = batch.features[z];
  for (std::int64_t s = begin; s < end; ++s) {
    if (batch.mask && !batch.mask[s]) continue;
    for (std::int64_t f = f0; f < f0 + feature_count && f < features.count; ++f) {
      const T x = widened<T>(data[features.samples.offset(s) + features.features.offset(f)]);
      if (!(x <= largest(T{}) && x >= -largest(T{}))) note(state, batch.first + z, s, f);
    }
  }
}

template <class T, bool by_samples>
__global__ void __launch_bounds__(kThreads)
    look_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Sums sums,
                std::int64_t per_part, State* state) {
  using S = Shape<by_samples>;
  constexpr int group = S::feature_group * S::sample_group;
  constexpr unsigned all = (1u << S::sample_group) - 1;
  __shared__ Partial shared[S::across][S::features];
  __shared__ Places places;
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

  Seen<T> seen[S::feature_group];
  std::int64_t feature_at[S::feature_group] = {};
  unsigned there = 0;  // which of the group's features are
#pragma unroll
  for (int j = 0; j < S::feature_group; ++j) {
    const std::int64_t f = feature0 + own + j;
    if (f >= features.count) continue;
    there |= 1u << j;
    feature_at[j] = features.features.offset(f);
  }
  int count = 0;
  with_elements(features, [&](const auto* data) {
    for (std::int64_t s0 = begin; s0 < end; s0 += kThreads * S::sample_group) {
      __syncthreads();
      const std::int64_t s = s0 + thread * S::sample_group;
      const unsigned samples = wanted_samples<S::sample_group>(batch.mask, s, end);
      places.wanted[thread] = static_cast<std::uint8_t>(samples);
      places.at[thread] = samples ? features.samples.offset(s) : 0;
      __syncthreads();
      const std::int64_t groups = (end - s0 + S::sample_group - 1) / S::sample_group;
      const int most = groups < kThreads ? static_cast<int>(groups) : kThreads;
      for (int first = across; first - across < most; first += S::ahead * S::across) {
        T x[S::ahead][group];
#pragma unroll
        for (int a = 0; a < S::ahead; ++a) {
          const int e = first + a * S::across;
          const unsigned wanted = by_samples && there ? places.wanted[e] : there;
          if (features.grouped) {
            load_group(data + places.at[e] + feature_at[0], features.step, features.vectors,
                       places.wanted[e] ? wanted : 0, x[a]);
            continue;
          }
#pragma unroll
          for (int i = 0; i < group; ++i) {
            x[a][i] = 0;
            if (!places.wanted[e] || !(wanted >> i & 1u)) continue;
            x[a][i] = widened<T>(
                by_samples
                    ? data[features.samples.offset(s0 + e * S::sample_group + i) + feature_at[0]]
                    : data[places.at[e] + feature_at[i]]);
          }
        }
#pragma unroll
        for (int a = 0; a < S::ahead; ++a) {
          const unsigned samples = there ? places.wanted[first + a * S::across] : 0;
          if (count == 0 && samples) {
#pragma unroll
            for (int i = group - 1; i >= 0; --i) {
              if (samples >> (by_samples ? i : 0) & 1u) seen[by_samples ? 0 : i].begin(x[a][i]);
            }
          }
          if (samples == all) {
#pragma unroll
            for (int i = 0; i < group; ++i) seen[by_samples ? 0 : i].include(x[a][i]);
          } else {
#pragma unroll
            for (int i = 0; i < group; ++i) {
              if (samples >> (by_samples ? i : 0) & 1u) {
                seen[by_samples ? 0 : i].include(x[a][i]);
              }
            }
          }
          count += __popc(samples);
        }
      }
#pragma unroll
      for (int j = 0; j < S::feature_group; ++j) seen[j].collect();
    }
    bool bad = false;
#pragma unroll
    for (int j = 0; j < S::feature_group; ++j) bad |= seen[j].bad();
    if (bad) find_bad<T>(data, batch, z, feature0 + own, S::feature_group, begin, end, state);
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
    Partial sum = shared[0][thread];
    for (int a = 1; a < S::across; ++a) include(sum, shared[a][thread]);
    sums.partials[z][static_cast<std::int64_t>(blockIdx.x) * features.count + feature0 + thread] =
        sum;
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

// Blocks for each part of the samples.
std::int64_t feature_blocks(const Batch& batch) {
  const std::int64_t side = batch.by_samples ? Shape<true>::features : Shape<false>::features;
  return ceil_div(batch.widest(), side);
}

}  // namespace

std::int64_t look_parts(const Batch& batch, int multiprocessors) {
  constexpr std::int64_t blocks_each = 16;  // of a multiprocessor: two rounds
  const std::int64_t wanted =
      ceil_div(blocks_each * multiprocessors, feature_blocks(batch) * batch.models);
  return std::clamp<std::int64_t>(std::min(wanted, batch.samples / kLeastPart), 1, kMostParts);
}

void look(const Batch& batch, Form form, const Sums& sums, State* state, cudaStream_t stream) {
  const bool wide = form == Form::doubles;
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
