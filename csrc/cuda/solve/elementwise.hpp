// Kernels that act on the elements of stacks of matrices, for the solver's backend. Asynchronous.
#pragma once

#include <vector>

#include "cuda/runtime.hpp"
#include "solve/backend.hpp"

namespace ccamerge::cuda {

// c = alpha a + beta b + diagonal I on the part; an operand without data is left out.
void combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& beta, ConstView b,
             const Coefficients& diagonal, Part part, cudaStream_t stream);
// Members of a stack from matrices that lie anywhere, all of one shape and leading dimension.
void stack(const std::vector<const double*>& from, int ld, View to, cudaStream_t stream);
void transpose(ConstView from, View to, cudaStream_t stream);
void mirror_lower(View a, cudaStream_t stream);
void reverse_columns(ConstView from, View to, cudaStream_t stream);
// factors (count * cols) on the device.
void scale_columns(View a, const double* factors, cudaStream_t stream);
// rows and cols are indices on the device.
void gather(ConstView from, const int* rows, const int* cols, View to, cudaStream_t stream);
void scatter(ConstView from, const int* rows, const int* cols, View to, cudaStream_t stream);
// The symmetric part in place. sizes (count,), zero before, become the bits of the two sizes, which
// order as numbers do.
struct SymmetryBits {
  unsigned long long largest, apart;
};
void symmetrise(View a, SymmetryBits* sizes, cudaStream_t stream);

}  // namespace ccamerge::cuda
