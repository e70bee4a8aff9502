// What is used of cuBLAS and cuSOLVER, on the CPU's BLAS and LAPACK. As NVIDIA's are, these are
// column-major; invalid arguments get a status, not a result.
#include "cuda/libraries.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "common/dtype.hpp"
#include "cuda/half.hpp"
#include "cuda/library_table.hpp"
#include "host/blas.hpp"

namespace ccamerge::cuda {
namespace {

constexpr auto kInvalid = static_cast<cublasStatus_t>(7);
constexpr auto kSolverInvalid = static_cast<cusolverStatus_t>(3);

// Columns of 16-bit numbers as float32, packed.
template <class Source>
std::vector<float> widened(const Source* from, int rows, int cols, int ld) {
  std::vector<float> out;
  out.reserve(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
  for (int j = 0; j < cols; ++j) {
    for (int i = 0; i < rows; ++i) {
      out.push_back(to_float(from[static_cast<std::ptrdiff_t>(j) * ld + i]));
    }
  }
  return out;
}

template <class Source>
void multiply_narrow(bool ta, bool tb, int m, int n, int k, float alpha, const Source* a, int lda,
                     const Source* b, int ldb, float beta, float* c, int ldc) {
  const int a_rows = ta ? k : m, b_rows = tb ? n : k;
  const auto wide_a = widened(a, a_rows, ta ? m : k, lda);
  const auto wide_b = widened(b, b_rows, tb ? k : n, ldb);
  blas::gemm<float>(ta, tb, m, n, k, alpha, wide_a.data(), std::max(1, a_rows), wide_b.data(),
                    std::max(1, b_rows), beta, c, ldc);
}

cublasStatus_t gemm_strided_batched(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b,
                                    int m, int n, int k, const void* alpha, const void* a,
                                    cudaDataType a_type, int lda, long long a_stride, const void* b,
                                    cudaDataType b_type, int ldb, long long b_stride,
                                    const void* beta, void* c, cudaDataType c_type, int ldc,
                                    long long c_stride, int count, cublasComputeType_t compute,
                                    cublasGemmAlgo_t) {
  const bool ta = op_a == CUBLAS_OP_T, tb = op_b == CUBLAS_OP_T;
  if (m < 0 || n < 0 || k < 0 || count < 0 || lda < std::max(1, ta ? k : m) ||
      ldb < std::max(1, tb ? n : k) || ldc < std::max(1, m) || a_type != b_type) {
    return kInvalid;
  }
  const bool wide = a_type == CUDA_R_64F;
  if (c_type != (wide ? CUDA_R_64F : CUDA_R_32F) ||
      compute != (wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F)) {
    return kInvalid;
  }
  for (int i = 0; i < count; ++i) {
    const auto at = [i](auto* base, long long stride) { return base + i * stride; };
    const auto narrow = [&](auto* type) {
      using Source = std::remove_pointer_t<decltype(type)>;
      multiply_narrow(ta, tb, m, n, k, *static_cast<const float*>(alpha),
                      at(static_cast<Source*>(a), a_stride), lda,
                      at(static_cast<Source*>(b), b_stride), ldb, *static_cast<const float*>(beta),
                      at(static_cast<float*>(c), c_stride), ldc);
    };
    if (wide) {
      blas::gemm<double>(ta, tb, m, n, k, *static_cast<const double*>(alpha),
                         at(static_cast<const double*>(a), a_stride), lda,
                         at(static_cast<const double*>(b), b_stride), ldb,
                         *static_cast<const double*>(beta), at(static_cast<double*>(c), c_stride),
                         ldc);
    } else if (a_type == CUDA_R_16F) {
      narrow(static_cast<const Half*>(nullptr));
    } else if (a_type == CUDA_R_16BF) {
      narrow(static_cast<const Bfloat*>(nullptr));
    } else {
      return kInvalid;
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

constexpr std::size_t kWorkspace = 64;

cusolverStatus_t syev_batched(cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t job,
                              cublasFillMode_t, int64_t n, cudaDataType type, void* a, int64_t lda,
                              cudaDataType, void* w, cudaDataType, void* work, size_t device_bytes,
                              void*, size_t, int* info, int64_t count) {
  if (type != CUDA_R_64F || lda < std::max<int64_t>(1, n) || !work || device_bytes < kWorkspace) {
    return kSolverInvalid;
  }
  for (int64_t i = 0; i < count; ++i) {
    info[i] = blas::syevd(job == CUSOLVER_EIG_MODE_VECTOR, static_cast<int>(n),
                          static_cast<double*>(a) + i * lda * n, static_cast<int>(lda),
                          static_cast<double*>(w) + i * n);
  }
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t buffer_size(size_t* device_bytes, size_t* host_bytes) {
  *device_bytes = *host_bytes = kWorkspace;
  return CUSOLVER_STATUS_SUCCESS;
}

LibraryTable emulated() {
  LibraryTable table;
  table.cublasCreate_v2 = [](cublasHandle_t* handle) {
    *handle = nullptr;
    return CUBLAS_STATUS_SUCCESS;
  };
  table.cublasSetStream_v2 = [](cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; };
  table.cublasGemmStridedBatchedEx = gemm_strided_batched;
  table.cusolverDnCreate = [](cusolverDnHandle_t* handle) {
    *handle = nullptr;
    return CUSOLVER_STATUS_SUCCESS;
  };
  table.cusolverDnSetStream = [](cusolverDnHandle_t, cudaStream_t) {
    return CUSOLVER_STATUS_SUCCESS;
  };
  table.cusolverDnCreateParams = [](cusolverDnParams_t* parameters) {
    *parameters = nullptr;
    return CUSOLVER_STATUS_SUCCESS;
  };
  table.cusolverDnXsyevd_bufferSize = [](cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t,
                                         cublasFillMode_t, int64_t, cudaDataType, const void*,
                                         int64_t, cudaDataType, const void*, cudaDataType,
                                         size_t* device_bytes, size_t* host_bytes) {
    return buffer_size(device_bytes, host_bytes);
  };
  table.cusolverDnXsyevd = [](cusolverDnHandle_t handle, cusolverDnParams_t parameters,
                              cusolverEigMode_t job, cublasFillMode_t fill, int64_t n,
                              cudaDataType a_type, void* a, int64_t lda, cudaDataType w_type,
                              void* w, cudaDataType compute, void* device, size_t device_bytes,
                              void* host, size_t host_bytes, int* info) {
    return syev_batched(handle, parameters, job, fill, n, a_type, a, lda, w_type, w, compute,
                        device, device_bytes, host, host_bytes, info, 1);
  };
  table.cusolverDnXsyevBatched_bufferSize =
      [](cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t, cublasFillMode_t, int64_t,
         cudaDataType, const void*, int64_t, cudaDataType, const void*, cudaDataType,
         size_t* device_bytes, size_t* host_bytes,
         int64_t) { return buffer_size(device_bytes, host_bytes); };
  table.cusolverDnXsyevBatched = syev_batched;
  return table;
}

}  // namespace

const LibraryTable& library_table() {
  static const LibraryTable table = emulated();
  return table;
}

void load_libraries(const std::vector<std::string>&, const std::vector<std::string>&) {}

}  // namespace ccamerge::cuda
