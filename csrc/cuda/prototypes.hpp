// What is used of cuBLAS and cuSOLVER, which are loaded at run time: their headers are not needed
// to build. Included with those headers (CCAMERGE_LIBRARY_HEADERS), this file redeclares their
// functions, so that a prototype or constant that differs does not compile; see
// csrc/tests/check_prototypes.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef CCAMERGE_LIBRARY_HEADERS
#include <cublas_v2.h>
#include <cusolverDn.h>
#else
#ifdef CCAMERGE_EMULATED
enum cudaDataType { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
#else
#include <library_types.h>
#endif
using cublasHandle_t = struct cublasContext*;
using cusolverDnHandle_t = struct cusolverDnContext*;
using cusolverDnParams_t = struct cusolverDnParams*;
using cudaStream_t = struct CUstream_st*;
enum cublasStatus_t : int { CUBLAS_STATUS_SUCCESS = 0 };
enum cusolverStatus_t : int { CUSOLVER_STATUS_SUCCESS = 0 };
enum cublasOperation_t : int { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasFillMode_t : int { CUBLAS_FILL_MODE_LOWER = 0 };
enum cublasComputeType_t : int { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_64F = 70 };
enum cublasGemmAlgo_t : int { CUBLAS_GEMM_DEFAULT = -1 };
enum cusolverEigMode_t : int { CUSOLVER_EIG_MODE_NOVECTOR = 0, CUSOLVER_EIG_MODE_VECTOR = 1 };
#endif

#define CCAMERGE_CUBLAS(X)                                                                         \
  X(cublasStatus_t, cublasCreate_v2, (cublasHandle_t*))                                            \
  X(cublasStatus_t, cublasSetStream_v2, (cublasHandle_t, cudaStream_t))                            \
  X(cublasStatus_t, cublasGemmStridedBatchedEx,                                                    \
    (cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*,             \
     const void*, cudaDataType, int, long long int, const void*, cudaDataType, int, long long int, \
     const void*, void*, cudaDataType, int, long long int, int, cublasComputeType_t,               \
     cublasGemmAlgo_t))

#define CCAMERGE_CUSOLVER(X)                                                                \
  X(cusolverStatus_t, cusolverDnCreate, (cusolverDnHandle_t*))                              \
  X(cusolverStatus_t, cusolverDnSetStream, (cusolverDnHandle_t, cudaStream_t))              \
  X(cusolverStatus_t, cusolverDnCreateParams, (cusolverDnParams_t*))                        \
  X(cusolverStatus_t, cusolverDnXsyevd_bufferSize,                                          \
    (cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t, cublasFillMode_t, int64_t,  \
     cudaDataType, const void*, int64_t, cudaDataType, const void*, cudaDataType, size_t*,  \
     size_t*))                                                                              \
  X(cusolverStatus_t, cusolverDnXsyevd,                                                     \
    (cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t, cublasFillMode_t, int64_t,  \
     cudaDataType, void*, int64_t, cudaDataType, void*, cudaDataType, void*, size_t, void*, \
     size_t, int*))                                                                         \
  X(cusolverStatus_t, cusolverDnXsyevBatched_bufferSize,                                    \
    (cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t, cublasFillMode_t, int64_t,  \
     cudaDataType, const void*, int64_t, cudaDataType, const void*, cudaDataType, size_t*,  \
     size_t*, int64_t))                                                                     \
  X(cusolverStatus_t, cusolverDnXsyevBatched,                                               \
    (cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t, cublasFillMode_t, int64_t,  \
     cudaDataType, void*, int64_t, cudaDataType, void*, cudaDataType, void*, size_t, void*, \
     size_t, int*, int64_t))
