// cuBLAS and cuSOLVER, loaded when first needed, so that importing ccamerge needs neither.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

// Loads both from the first of the candidates (paths or sonames) that the loader accepts; copies
// that the process has loaded already are taken before any of them. Does nothing when loaded.
// Throws std::runtime_error with the loader's words.
void load_libraries(const std::vector<std::string>& cublas,
                    const std::vector<std::string>& cusolver);

enum class Number { float64, float16, bfloat16 };

// Handles for the current device and a stream, lent for a call. Throws std::runtime_error if the
// libraries have not been loaded.
class Handles {
 public:
  explicit Handles(cudaStream_t stream);
  ~Handles();
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;

  cudaStream_t stream() const { return stream_; }

  // A stack of products c = alpha op(a) op(b) + beta c, column-major, c (m, n), inner dimension k;
  // members lie `stride` elements apart. c is float64 if a and b are, else float32, and products of
  // the 16-bit types are exact.
  struct Operand {
    const void* data;
    int ld;
    long long stride;
    bool transposed;
  };
  void multiply(Number number, int m, int n, int k, double alpha, Operand a, Operand b, double beta,
                void* c, int ldc, long long c_stride, int count) const;

  // Eigenvalues w (n, count) ascending of symmetric matrices (lower triangle), `stride` apart, and
  // their eigenvectors in their place, if wanted. `allocate` gives workspace on the device. info
  // (count,) on the device, as LAPACK's.
  void eigh(bool vectors, int n, double* a, int lda, long long stride, double* w, int count,
            int* info, const std::function<void*(std::size_t)>& allocate) const;

  struct Set;                      // what is lent
  static std::size_t idle_sets();  // how many are kept, for tests

 private:
  int device_ = 0;
  cudaStream_t stream_;
  Set* set_;
};

}  // namespace ccamerge::cuda
