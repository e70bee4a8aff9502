// What kernels do with an accumulator's state. For kernels only.
#pragma once

#include "cuda/moments/state.hpp"
#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

// Notes a bad element of the update under way.
__device__ inline void note(State* state, int model, std::int64_t sample, std::int64_t feature) {
  const auto key = (static_cast<unsigned long long>(model) << (kFeatureBits + kSampleBits)) |
                   (static_cast<unsigned long long>(sample) << kFeatureBits) |
                   static_cast<unsigned long long>(feature);
  atomicMax(&state->bad, ~key);
}

// Adds what other samples of a feature hold.
__device__ inline void include(Partial& into, const Partial& other) {
  into.sum += other.sum;
  into.lowest = other.lowest < into.lowest ? other.lowest : into.lowest;
  into.highest = other.highest > into.highest ? other.highest : into.highest;
}

// The mean of all samples after an update whose own mean lies `delta` from that before.
__device__ inline double moved_mean(const State& state, double mean, double delta) {
  const auto n = static_cast<double>(state.before), m = static_cast<double>(state.selected);
  return mean + m / (n + m) * delta;
}

// What an update, or with `last` unset a part of it, adds to the second moment of features r and c,
// from their sum of products of (x - shift) / unit: Chan, Golub & LeVeque (1983).
__device__ inline double centred(double products, const Centre& rows, std::int64_t r,
                                 const Centre& columns, std::int64_t c, const State& state,
                                 bool last) {
  double sum = products * (rows.unit[r] * columns.unit[c]);
  if (last) {
    const auto n = static_cast<double>(state.before), m = static_cast<double>(state.selected);
    sum -= rows.offset[r] * columns.sum[c];
    sum += n / (n + m) * m * rows.delta[r] * columns.delta[c];
  }
  return sum;
}

}  // namespace ccamerge::cuda
