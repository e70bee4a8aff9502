// The kernels that add products to a block's totals and read blocks out. Asynchronous.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/runtime.hpp"
#include "cuda/state.hpp"

namespace ccamerge::cuda {

// A block of totals (rows, columns), row-major; of a model's own only the upper triangle counts.
struct Total {
  double* data = nullptr;
  std::int64_t rows = 0, columns = 0;
  bool own = false;
};

// Adds the products of an update's samples, or of a part of them, to rows and columns of a block
// from (row, column) on: the sum over `parts` matrices (rows, columns), row-major with rows
// `stride` and parts `part_stride` elements apart. With `last`, what centres them too: Chan, Golub
// & LeVeque (1983). Does nothing if the update failed or selected no sample.
template <class T>
struct Products {
  const T* data = nullptr;
  std::int64_t row = 0, column = 0, rows = 0, columns = 0;
  std::int64_t stride = 0, part_stride = 0;
  std::int64_t parts = 0;
  bool last = true;
};
void add(const Total& total, const Products<float>& products, const Centre& rows,
         const Centre& columns, const State* state, cudaStream_t stream);
void add(const Total& total, const Products<double>& products, const Centre& rows,
         const Centre& columns, const State* state, cudaStream_t stream);

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
