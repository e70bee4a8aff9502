// What an accumulator keeps on the device beside its totals, and what one update works with.
#pragma once

#include <cstdint>

#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

inline constexpr unsigned long long kNothingBad = ~0ull;

// An update never waits for the device, so what is wrong with its values is noted here and reported
// by the next call that does wait. From the bad update on nothing changes.
struct State {
  long long count;             // samples in the totals
  long long before, selected;  // of the update under way: samples before it, and its own
  unsigned long long bad;      // the first bad element of the update under way; see Position
  long long failed;            // number of the update that held a bad element, or -1
};

// Where a bad element is, in an order that makes the smallest the first: model, sample, feature.
struct Position {
  int model;
  std::int64_t sample, feature;

  static constexpr int kFeatureBits = 20, kSampleBits = 34;
};

// A feature's partial sums over some samples, of x - shift; lowest and highest are of x itself.
struct Partial {
  double sum, lowest, highest;
};

// Per model and feature of an update, (features,) each. The update's centred products are
// acc - u s with acc the products of x - shift; a feature that is constant within the update has
// none, whatever rounding says: keep is 0 there, else 1.
struct Centre {
  double* sum;     // s, of x - shift
  double* offset;  // u = s / selected
  double* delta;   // mean of the update less the mean before
  double* keep;
};

// Notes a bad element of the update under way.
__device__ inline void note(State* state, int model, std::int64_t sample, std::int64_t feature) {
  const auto key =
      (static_cast<unsigned long long>(model) << (Position::kFeatureBits + Position::kSampleBits)) |
      (static_cast<unsigned long long>(sample) << Position::kFeatureBits) |
      static_cast<unsigned long long>(feature);
  atomicMin(&state->bad, key);
}

// The mean of all samples after an update whose own mean lies `delta` from that before.
__device__ inline double moved_mean(const State& state, double mean, double delta) {
  const auto n = static_cast<double>(state.before), m = static_cast<double>(state.selected);
  return mean + m / (n + m) * delta;
}

// What an update, or with `last` unset a part of it, adds to the second moment of features r and c,
// from their sum of products of x - shift: Chan, Golub & LeVeque (1983).
__device__ inline double centred(double products, const Centre& rows, std::int64_t r,
                                 const Centre& columns, std::int64_t c, const State& state,
                                 bool last) {
  double sum = products * (rows.keep[r] * columns.keep[c]);
  if (last) {
    const auto n = static_cast<double>(state.before), m = static_cast<double>(state.selected);
    sum -= rows.keep[r] * rows.offset[r] * (columns.keep[c] * columns.sum[c]);
    sum += n / (n + m) * m * rows.delta[r] * columns.delta[c];
  }
  return sum;
}

}  // namespace ccamerge::cuda
