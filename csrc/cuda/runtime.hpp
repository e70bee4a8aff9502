// The CUDA runtime with errors as exceptions. For host code and kernels' launches; nothing of
// Python.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

// For code that kernels should not have a copy of at each call.
#ifdef __CUDACC__
#define CCAMERGE_NOINLINE __noinline__
#else
#define CCAMERGE_NOINLINE
#endif

namespace ccamerge::cuda {

// Throws std::runtime_error naming the call, with CUDA's name and text of the error.
void check(cudaError_t code, const char* call);

// Makes a device current while it lives. Where it is already, nothing is touched: naming another
// device for the first time would start CUDA there.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

int multiprocessors(int device);
std::size_t memory_bytes(int device);

// Runs a kernel on a stream. Arguments are converted to the kernel's parameters.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  // A grid's second and third extents are limited, so callers put what can be large first.
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...),
        "cudaLaunchKernelEx");
}

// Copies between the host and a device, which wait until they are done. For what has no place in an
// update.
void to_device(void* to, const void* from, std::size_t bytes, cudaStream_t stream);
void to_host(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

template <class T>
T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace ccamerge::cuda
