// The kernels of an update that look at features one by one: their sums, and where to centre them.
// Everything is asynchronous on the stream.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/moments/features.hpp"
#include "cuda/moments/state.hpp"
#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

// In what numbers x - shift is formed and multiplied.
enum class Form {
  narrow,   // the features' own 16-bit type
  singles,  // float32, in 16-bit parts
  doubles,  // float64
};

inline constexpr int kModelsPerLaunch = 8;

// Models that a launch handles side by side.
struct Batch {
  int models = 0;
  int first = 0;  // the number of the first one
  std::int64_t samples = 0;
  bool by_samples = false;             // neighbours in memory are samples, not features
  const std::uint8_t* mask = nullptr;  // (samples,) or null for all
  Features features[kModelsPerLaunch];
  const double* shift[kModelsPerLaunch] = {};  // (features,)
  float* scale[kModelsPerLaunch] = {};         // (features,): see derive_centres

  std::int64_t widest() const {  // model's features
    std::int64_t width = 0;
    for (int i = 0; i < models; ++i) width = std::max(width, features[i].count);
    return width;
  }
};

// Sums over parts of the samples: (parts, features) of each model, and selected samples (parts,).
struct Sums {
  std::int64_t parts = 0;
  Partial* partials[kModelsPerLaunch] = {};
  long long* selected = nullptr;
};

// So many parts `look` makes on a device of so many multiprocessors.
std::int64_t look_parts(const Batch& batch, int multiprocessors);

// Reads all samples once for their sums about zero. What is not finite, or too large for its form,
// is noted in the state. Does nothing once an update has failed.
void look(const Batch& batch, Form form, const Sums& sums, State* state, cudaStream_t stream);

// Guesses shifts from up to 128 samples spread over the update at random, for those who read the
// rest only once and form differences in float32: the batch's unless the mean lies more than a
// standard deviation off. chosen[i] (features,) are numbers of float32. There must be no mask.
void guess_shifts(const Batch& batch, double* const* chosen, cudaStream_t stream);

// Adds up the partials (in a fixed order) and derives the centres; mean is each model's. Features
// that vary by less than 2^-62 are noted in the state unless they have a scale, or are float64.
// With `chosen`, the sums are about zero, and chosen[i] (features,) get the shifts: the means in
// the form's numbers, for the narrow form only where all elements lie between the mean's half and
// its double, else zero: then differences are numbers of the same type, and none is rounded
// (Sterbenz 1974). Where the batch has scales, the largest difference times its scale lies between
// 2^14 and 2^15, unless float32 has no such scale, and the centres' units are their inverses.
void derive_centres(const Batch& batch, Form form, const Sums& sums, const double* const* mean,
                    const Centre* centres, double* const* chosen, State* state,
                    cudaStream_t stream);

// Adds the update to count and means, and takes over the chosen shifts if given. With `last`, notes
// the update's number if it has failed.
void finish(const Batch& batch, const Centre* centres, const double* const* chosen,
            double* const* shift, double* const* mean, State* state, bool last, long long update,
            cudaStream_t stream);

}  // namespace ccamerge::cuda
