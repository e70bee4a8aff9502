// The kernels that add products to a block's totals and read blocks out. Asynchronous.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/moments/state.hpp"
#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

// A block of totals (rows, columns), row-major; of a model's own only the upper triangle counts.
struct Total {
  double* data = nullptr;
  std::int64_t rows = 0, columns = 0;
  bool own = false;
};

// What is added to rows and columns of a block from (row, column) on: the sum over `parts` matrices
// (height, width), row-major with rows `stride` and parts `part_stride` elements apart, of products
// of an update's samples or of some of them. With `last`, what centres them too: Chan, Golub &
// LeVeque (1983).
template <class T>
struct Addend {
  Total total;
  Centre rows, columns;  // of the block's models
  const T* data = nullptr;
  std::int64_t row = 0, column = 0, height = 0, width = 0;
  std::int64_t stride = 0, part_stride = 0;
  std::int64_t parts = 0;
  bool last = true;
  bool vectors = false;  // set by `add`
};
// They are of different blocks, or parts of blocks. Does nothing if the update failed or selected
// no sample.
template <class T>
void add(const std::vector<Addend<T>>& addends, const State* state, cudaStream_t stream);

// out (rows, columns), or its transpose, row-major: the block with both triangles, divided by the
// count if told to.
void read(const Total& total, bool transposed, bool divided, const State* state, double* out,
          cudaStream_t stream);

// The centres of an update that consists of what another accumulator has seen, whose products are
// its totals.
void centre_on(const double* mean, const double* other, std::int64_t features, const Centre& centre,
               cudaStream_t stream);

// Copies states, scattered over device memory, side by side.
void gather_states(const std::vector<const State*>& from, State* to, cudaStream_t stream);

// mean (features,) moves to that of all samples, as after an update.
void move_mean(const Centre& centre, double* mean, std::int64_t features, const State* state,
               cudaStream_t stream);

}  // namespace ccamerge::cuda
