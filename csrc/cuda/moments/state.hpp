// What an accumulator keeps on the device beside its totals, and what one update works with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ccamerge::cuda {

// An update never waits for the device, so what is wrong with its values is noted here and reported
// by the next call that does wait. From the bad update on nothing changes. All zero before the
// first.
struct State {
  long long count;             // samples in the totals
  long long before, selected;  // of the update under way: samples before it, and its own
  unsigned long long bad;      // of the update under way: see kModelBits; 0 if nothing is bad
  long long failed;            // number of the update that held a bad element, from 1 on, or 0: set
                               // when it ends
};

// Where a bad element is: model, sample and feature, from the high bits of a number to the low
// ones. Its complement is kept, so that the largest kept is the first of all.
inline constexpr int kModelBits = 10, kSampleBits = 34, kFeatureBits = 20;
// In the place of a sample: the feature as a whole varies by too little, for its squares vanish.
inline constexpr std::int64_t kTooSmall = (std::int64_t{1} << kSampleBits) - 1;

// A feature's partial sums over some samples, of x or of x - shift; lowest and highest are of x.
struct Partial {
  double sum, lowest, highest;
};

// Per model and feature of an update, (features,) each. The update's centred products are
// acc unit unit' - u s' with acc the products of (x - shift) / unit. A feature that is constant
// within the update has none, whatever rounding says: unit, u and s are 0 there.
struct Centre {
  double* sum;     // s, of x - shift
  double* offset;  // u = s / selected
  double* delta;   // mean of the update less the mean before
  double* unit;

  // For an Arena: names the parts of what is to be centred, of so many features.
  template <class Part>
  void lay_out(std::size_t features, Part&& part) {
    for (double** of : {&sum, &offset, &delta, &unit}) part(features, *of);
  }
};

}  // namespace ccamerge::cuda
