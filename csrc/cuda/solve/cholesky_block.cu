#include "cuda/dynamic_shared.hpp"
#include "cuda/solve/cholesky_block.hpp"

namespace ccamerge::cuda {
namespace {

constexpr int kPitch = kCholeskyBlock + 1;
constexpr int kShares = 8;
constexpr int kThreads = kCholeskyBlock * kShares;
constexpr std::size_t kShared = 2 * sizeof(double) * kCholeskyBlock * kPitch;

// Column by column: each is scaled by its pivot, then taken off what is right of it, in the factor
// and, row by row, in the inverse. A block a member; threads along x are rows, those along y share
// the columns.
__global__ void __launch_bounds__(kThreads) factor_kernel(View a, View inverse, int at, int* info) {
  auto* const l = reinterpret_cast<double (*)[kPitch]>(dynamic_shared());  // [column][row]
  auto* const x = l + kCholeskyBlock;                                      // [column][row]
  const int n = a.rows, member = static_cast<int>(blockIdx.x);
  const int i = static_cast<int>(threadIdx.x), first = static_cast<int>(threadIdx.y);
  double* const from = a.data + member * a.stride;
  double* const to = inverse.data + member * inverse.stride;
  for (int j = first; j < n && i < n; j += kShares) {
    l[j][i] = i < j ? 0 : from[static_cast<std::ptrdiff_t>(j) * a.ld + i];
    x[j][i] = i == j;
  }
  __syncthreads();
  for (int k = 0; k < n; ++k) {
    const double pivot = l[k][k];
    if (!(pivot > 0)) {
      if (i == 0 && first == 0 && info[member] == 0) info[member] = at + k + 1;
      return;  // all threads see the same pivot
    }
    const double root = sqrt(pivot), scale = 1 / root;
    __syncthreads();
    if (first == 0 && i >= k && i < n) l[k][i] = i == k ? root : l[k][i] * scale;
    if (first == 1 && i <= k) x[i][k] *= scale;
    __syncthreads();
    if (i > k && i < n) {
      const double factor = l[k][i];
      for (int j = first; j <= i; j += kShares) {
        if (j <= k) {
          x[j][i] -= factor * x[j][k];
        } else {
          l[j][i] -= factor * l[k][j];
        }
      }
    }
    __syncthreads();
  }
  for (int j = first; j < n && i < n; j += kShares) {
    from[static_cast<std::ptrdiff_t>(j) * a.ld + i] = l[j][i];
    to[static_cast<std::ptrdiff_t>(j) * inverse.ld + i] = i < j ? 0 : x[j][i];
  }
}

}  // namespace

void factor_block(View a, View inverse, int at, int* info, cudaStream_t stream) {
  if (a.rows == 0 || a.count == 0) return;
  check(cudaFuncSetAttribute(factor_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(kShared)),
        "cudaFuncSetAttribute");
  launch(factor_kernel, static_cast<unsigned>(a.count), {kCholeskyBlock, kShares}, kShared, stream,
         a, inverse, at, info);
}

}  // namespace ccamerge::cuda
