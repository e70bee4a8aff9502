// What an accumulator keeps on the device beside its totals, and what one update works with.
#pragma once

#include <cstdint>

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

}  // namespace ccamerge::cuda
