// The operands of matrix products: features converted, and laid out with samples innermost.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/moments/statistics.hpp"

namespace ccamerge::cuda {

// Of x = h + l and y likewise, split by `halves`, the products h l', l h' and h h' make float32's
// accuracy. With the parts stacked as h, l, h, h, one product of slabs 0..2 of x with slabs 1..3 of
// y, their inner dimensions joined, is the sum of all three. The largest comes last: matrix units
// round sums towards zero, by more the larger the sum is.
inline constexpr int kSlabs = 4;
inline constexpr int kSlabProducts = kSlabs - 1;

__host__ __device__ constexpr int slabs_of(Form form) { return form == Form::singles ? kSlabs : 1; }
constexpr std::size_t item_of(Form form) { return form == Form::doubles ? sizeof(double) : 2; }

// Chunks of `rows` samples, each (features, slabs, rows), the models' features side by side on one
// axis. Samples beyond the last are zero; what fills the axis up between models is anything, and so
// are its products.
struct Operands {
  void* data = nullptr;
  std::int64_t rows = 0;   // a multiple of kSampleGroup
  std::int64_t width = 0;  // of the axis of features
  std::int64_t start[kModelsPerLaunch] = {};
};

// Converts the samples [first, last) into chunks from the first one on. Does nothing once an update
// has failed.
void pack(const Batch& batch, Form form, const Operands& to, std::int64_t first, std::int64_t last,
          const State* state, cudaStream_t stream);

}  // namespace ccamerge::cuda
