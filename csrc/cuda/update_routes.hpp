// The ways that an update can go. Each queues its kernels and products and returns.
#pragma once

#include "cuda/memory.hpp"
#include "cuda/small.hpp"
#include "cuda/update_input.hpp"

namespace ccamerge::cuda {

// Operands in memory, products by cuBLAS.
void update_by_products(const UpdateInput& input, const BlockTable& table, const Storage& storage,
                        long long number, const Limits& limits, const Allocate& allocate,
                        cudaStream_t stream);

// One kernel for few features, not of float64.
void update_small(const UpdateInput& input, const SmallLayout& layout, const Storage& storage,
                  long long number, int multiprocessors, const Allocate& allocate,
                  cudaStream_t stream);

}  // namespace ccamerge::cuda
