// The ways that an update can go. Memory is allocated first, so that nothing is queued of a call
// whose memory does not suffice.
#pragma once

#include <memory>

#include "cuda/memory.hpp"
#include "cuda/moments/small.hpp"
#include "cuda/moments/update_input.hpp"

namespace ccamerge::cuda {

class UpdateRoute {
 public:
  virtual ~UpdateRoute() = default;
  // Queues kernels and products, and returns. `number` is the update's, from 1 on.
  virtual void queue(const Storage& storage, long long number, cudaStream_t stream) = 0;
};

// Operands in memory, products by cuBLAS. The input and the table outlive the route.
std::unique_ptr<UpdateRoute> product_route(const UpdateInput& input, const BlockTable& table,
                                           const Limits& limits, int multiprocessors,
                                           const Allocate& allocate);

// One kernel for few features, of a simple input.
std::unique_ptr<UpdateRoute> small_route(const UpdateInput& input, const SmallLayout& layout,
                                         int multiprocessors, const Allocate& allocate);

}  // namespace ccamerge::cuda
