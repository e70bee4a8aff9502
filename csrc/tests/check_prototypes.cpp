// Compiles only if what csrc/cuda/prototypes.hpp declares is what NVIDIA's headers declare:
//
//   g++ -std=c++20 -fsyntax-only -DCCAMERGE_LIBRARY_HEADERS -I csrc -I <CUDA>/include
//       -I <site-packages>/nvidia/cu13/include csrc/tests/check_prototypes.cpp
#include "cuda/prototypes.hpp"

extern "C" {
#define CCAMERGE_REDECLARE(result, name, parameters) result name parameters;
CCAMERGE_CUBLAS(CCAMERGE_REDECLARE)
CCAMERGE_CUSOLVER(CCAMERGE_REDECLARE)
#undef CCAMERGE_REDECLARE
}

static_assert(CUBLAS_STATUS_SUCCESS == 0 && CUSOLVER_STATUS_SUCCESS == 0);
static_assert(CUBLAS_OP_N == 0 && CUBLAS_OP_T == 1);
static_assert(CUBLAS_FILL_MODE_LOWER == 0);
static_assert(CUBLAS_COMPUTE_32F == 68 && CUBLAS_COMPUTE_64F == 70);
static_assert(CUBLAS_GEMM_DEFAULT == -1);
static_assert(CUSOLVER_EIG_MODE_NOVECTOR == 0 && CUSOLVER_EIG_MODE_VECTOR == 1);
static_assert(CUDA_R_32F == 0 && CUDA_R_64F == 1 && CUDA_R_16F == 2 && CUDA_R_16BF == 14);
