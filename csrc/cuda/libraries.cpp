#include "cuda/libraries.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "common/check.hpp"
#include "cuda/library_table.hpp"

namespace ccamerge::cuda {
namespace {

void check_status(int status, const char* call) {
  if (status != 0) throw std::runtime_error(format_message(call, " failed with status ", status));
}

cudaDataType type_of(Number number) {
  switch (number) {
    case Number::float64:
      return CUDA_R_64F;
    case Number::float16:
      return CUDA_R_16F;
    case Number::bfloat16:
      break;
  }
  return CUDA_R_16BF;
}

}  // namespace

struct Handles::Set {
  cublasHandle_t blas = nullptr;
  cusolverDnHandle_t solver = nullptr;
  cusolverDnParams_t parameters = nullptr;
};

namespace {

// Sets that are kept for when their stream comes again; as programs that make a stream for each
// task never do, no more than these of a device.
constexpr std::size_t kMostIdle = 16;

// Never destroyed: CUDA may be gone before static objects are.
struct Idle {
  struct Kept {
    int device;
    cudaStream_t stream;
    Handles::Set* set;
  };
  std::mutex mutex;
  std::vector<Kept> sets;  // the longest idle first
};
Idle& idle() {
  static auto* const instance = new Idle;
  return *instance;
}

}  // namespace

Handles::Handles(cudaStream_t stream) : stream_(stream), set_(nullptr) {
  const LibraryTable& library = library_table();
  if (!library.cublasCreate_v2) throw std::runtime_error("cuBLAS and cuSOLVER are not loaded");
  check(cudaGetDevice(&device_), "cudaGetDevice");
  bool foreign = false;
  {
    std::lock_guard lock(idle().mutex);
    auto& sets = idle().sets;
    const auto here = [this](const Idle::Kept& kept) { return kept.device == device_; };
    auto it = std::find_if(sets.begin(), sets.end(), [&](const Idle::Kept& kept) {
      return here(kept) && kept.stream == stream;
    });
    foreign = it == sets.end() && std::count_if(sets.begin(), sets.end(), here) >=
                                      static_cast<std::ptrdiff_t>(kMostIdle);
    if (foreign) it = std::find_if(sets.begin(), sets.end(), here);
    if (it != sets.end()) {
      set_ = it->set;
      sets.erase(it);
    }
  }
  // Work still queued on a set's stream, which may be gone by now, may use its workspace.
  if (foreign) check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  if (!set_) {
    auto fresh = std::make_unique<Set>();
    check_status(library.cublasCreate_v2(&fresh->blas), "cublasCreate");
    set_ = fresh.release();
  }
  check_status(library.cublasSetStream_v2(set_->blas, stream), "cublasSetStream");
}

Handles::~Handles() {
  std::lock_guard lock(idle().mutex);
  idle().sets.push_back({device_, stream_, set_});
}

std::size_t Handles::idle_sets() {
  std::lock_guard lock(idle().mutex);
  return idle().sets.size();
}

void Handles::multiply(Number number, int m, int n, int k, double alpha, Operand a, Operand b,
                       double beta, void* c, int ldc, long long c_stride, int count) const {
  const bool wide = number == Number::float64;
  const float alpha32 = static_cast<float>(alpha), beta32 = static_cast<float>(beta);
  const void* const scale = wide ? static_cast<const void*>(&alpha) : &alpha32;
  const void* const keep = wide ? static_cast<const void*>(&beta) : &beta32;
  const cudaDataType type = type_of(number);
  check_status(
      library_table().cublasGemmStridedBatchedEx(
          set_->blas, a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
          b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, m, n, k, scale, a.data, type, a.ld, a.stride,
          b.data, type, b.ld, b.stride, keep, c, wide ? CUDA_R_64F : CUDA_R_32F, ldc, c_stride,
          count, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmStridedBatchedEx");
}

namespace {

// From this order on a matrix fills the device by itself, and the solver of single ones is faster.
constexpr int kSingleFrom = 1024;
// Larger batches are refused by some versions of cuSOLVER.
constexpr int kMostInBatch = 16384;

}  // namespace

void Handles::eigh(bool vectors, int n, double* a, int lda, long long stride, double* w, int count,
                   int* info, const std::function<void*(std::size_t)>& allocate) const {
  const LibraryTable& library = library_table();
  if (!set_->parameters) {  // most streams never need a solver
    check_status(library.cusolverDnCreate(&set_->solver), "cusolverDnCreate");
    check_status(library.cusolverDnCreateParams(&set_->parameters), "cusolverDnCreateParams");
  }
  check_status(library.cusolverDnSetStream(set_->solver, stream_), "cusolverDnSetStream");
  const auto job = vectors ? CUSOLVER_EIG_MODE_VECTOR : CUSOLVER_EIG_MODE_NOVECTOR;
  const auto lower = CUBLAS_FILL_MODE_LOWER;
  std::size_t device_bytes = 0, host_bytes = 0;
  // The batched solver takes contiguous stacks only.
  if (n < kSingleFrom && (count == 1 || stride == static_cast<long long>(lda) * n)) {
    if (count > kMostInBatch) {
      for (int first = 0; first < count; first += kMostInBatch) {
        eigh(vectors, n, a + first * stride, lda, stride,
             w + static_cast<std::ptrdiff_t>(first) * n, std::min(kMostInBatch, count - first),
             info + first, allocate);
      }
      return;
    }
    check_status(library.cusolverDnXsyevBatched_bufferSize(
                     set_->solver, set_->parameters, job, lower, n, CUDA_R_64F, a, lda, CUDA_R_64F,
                     w, CUDA_R_64F, &device_bytes, &host_bytes, count),
                 "cusolverDnXsyevBatched_bufferSize");
    std::vector<std::byte> host(host_bytes);
    void* const work = allocate(device_bytes);
    check_status(library.cusolverDnXsyevBatched(set_->solver, set_->parameters, job, lower, n,
                                                CUDA_R_64F, a, lda, CUDA_R_64F, w, CUDA_R_64F, work,
                                                device_bytes, host.data(), host_bytes, info, count),
                 "cusolverDnXsyevBatched");
    // The host workspace must outlive the call's work.
    if (host_bytes > 0) check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return;
  }
  check_status(library.cusolverDnXsyevd_bufferSize(set_->solver, set_->parameters, job, lower, n,
                                                   CUDA_R_64F, a, lda, CUDA_R_64F, w, CUDA_R_64F,
                                                   &device_bytes, &host_bytes),
               "cusolverDnXsyevd_bufferSize");
  std::vector<std::byte> host(host_bytes);
  void* const work = allocate(device_bytes);
  for (int i = 0; i < count; ++i) {
    check_status(library.cusolverDnXsyevd(set_->solver, set_->parameters, job, lower, n, CUDA_R_64F,
                                          a + i * stride, lda, CUDA_R_64F,
                                          w + static_cast<std::ptrdiff_t>(i) * n, CUDA_R_64F, work,
                                          device_bytes, host.data(), host_bytes, info + i),
                 "cusolverDnXsyevd");
  }
  if (host_bytes > 0) check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

}  // namespace ccamerge::cuda
