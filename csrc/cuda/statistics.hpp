// The kernels of an update that look at features one by one: where to centre them, their sums, and
// their conversion into operands of matrix products. Everything is asynchronous on the stream.
#pragma once

#include <cstdint>

#include "cuda/features.hpp"
#include "cuda/runtime.hpp"
#include "cuda/state.hpp"

namespace ccamerge::cuda {

// What features become before they are multiplied, as a (samples, stride) row-major matrix or
// several.
enum class Form {
  none,     // nothing: they are only looked at
  narrow,   // x - shift in the features' own 16-bit type
  planes,   // x - shift in float32, split into bfloat16 parts: see part_of_plane
  doubles,  // x - shift in float64
};

// Of x = p0 + p1 + p2 and y likewise the products p0 q0, p0 q1, p1 q1, p1 q0, p0 q2 and p2 q0 make
// float32's accuracy. With the parts stacked in this order, one product of slabs 0..5 of x with
// slabs 1..6 of y, their inner dimensions joined, is the sum of all six. The largest comes last:
// matrix units round sums towards zero, by more the larger the sum is.
inline constexpr int kPlanes = 7;
inline constexpr int kPlaneProducts = kPlanes - 1;
__host__ __device__ constexpr int part_of_plane(int plane) {  // 0, 2, 0, 1, 1, 0, 0
  return plane == 1 ? 2 : plane == 3 || plane == 4 ? 1 : 0;
}

inline int slabs_of(Form form) { return form == Form::planes ? kPlanes : 1; }
inline std::size_t item_of(Form form) { return form == Form::doubles ? sizeof(double) : 2; }

// Memory of the operands: for each chunk of `rows` samples, each slab's (rows, stride) in turn.
// Rows beyond the last sample are zero.
struct Target {
  void* data = nullptr;
  std::int64_t rows = 0, stride = 0;
};

inline constexpr int kModelsPerLaunch = 8;

// Models that a launch handles side by side.
struct Batch {
  int models = 0;
  int first = 0;  // the number of the first one
  std::int64_t samples = 0;
  const std::uint8_t* mask = nullptr;  // (samples,) or null for all
  Features features[kModelsPerLaunch];
  const double* shift[kModelsPerLaunch] = {};  // (features,)
  Target target[kModelsPerLaunch];
};

// Chooses shifts from up to 256 samples spread over the update at random: those of the batch unless
// the mean lies more than a standard deviation off. For the narrow form the mean if all that are
// looked at, 32 or all, lie between its half and its double, else none: then differences
// from it are numbers of the same type (Sterbenz 1974), so that nothing is lost. chosen[i]
// (features,) are numbers of the form's type.
void choose_shifts(const Batch& batch, Form form, double* const* chosen, cudaStream_t stream);

// Samples that a block of `pack` sums over, and so many partial sums there are of `samples`.
std::int64_t partial_samples(std::int64_t samples);
std::int64_t partial_count(std::int64_t samples);

// Reads the samples [first, last) once: writes the operands, from row 0 on, in chunks, and, if
// partials are given, sums (partial_count, features) for each model and selected samples
// (partial_count,). What is not finite, or too large for its form, is noted in the state. Does
// nothing once an update has failed.
struct Sums {
  Partial* partials[kModelsPerLaunch] = {};
  long long* selected = nullptr;
};
void pack(const Batch& batch, Form form, std::int64_t first, std::int64_t last, const Sums& sums,
          State* state, cudaStream_t stream);

// Adds up so many partials (in a fixed order) and derives the centres; `update` is the update's
// number, mean each model's.
void derive_centres(const Batch& batch, const Sums& sums, std::int64_t partials,
                    const double* const* mean, const Centre* centres, State* state,
                    long long update, cudaStream_t stream);

// Adds the update to count and means, and takes over the chosen shifts where given.
void finish(const Batch& batch, const Centre* centres, const double* const* chosen,
            double* const* shift, double* const* mean, State* state, bool last,
            cudaStream_t stream);

}  // namespace ccamerge::cuda
