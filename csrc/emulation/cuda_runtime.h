// An emulation of the part of the CUDA runtime that csrc/cuda uses, so that its kernels and all
// that drives them run, and are tested, on machines without a GPU. Files of csrc/cuda compiled with
// this folder first on the include path find this header instead of NVIDIA's; device memory is host
// memory, and everything has happened when a call returns.
//
// The threads of a block are fibers of one thread of the system. They are switched at barriers and
// at the operations of a warp only, in an order that changes from one barrier to the next: a
// missing barrier gives wrong results sooner or later. ThreadSanitizer takes each for a thread, and
// finds one at once. Blocks run one after the other.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

// Host side ---------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
};
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();

using cudaStream_t = struct CUstream_st*;

struct cudaDeviceProp {
  char name[256];
  int major, minor;
  std::size_t totalGlobalMem;
  int multiProcessorCount;
};
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMultiProcessorCount = 16,
};
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);

enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
};
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <class F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int bytes) {
  return bytes >= 0 ? cudaSuccess : cudaErrorInvalidValue;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

// Device side -------------------------------------------------------------------------------------

namespace ccamerge::emulation {

// Runs every block of the grid.
cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

void* dynamic_shared_memory();

// Waits for the warp's other threads. Every thread that has not returned must come.
void meet();
// Leaves `mine` (at most 16 bytes) for the warp's other threads, and waits for theirs.
void give(const void* mine, std::size_t bytes);
// What a lane gave; valid until the next meet().
const void* given(unsigned lane);
unsigned lane();

template <class T>
T from_lane(T value, unsigned source) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  give(&value, sizeof(T));
  T result;
  std::memcpy(&result, given(source & 31u), sizeof(T));
  meet();
  return result;
}

}  // namespace ccamerge::emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  return ccamerge::emulation::run(*config, [&] { std::apply(kernel, values); });
}

void __syncthreads();

inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return ccamerge::emulation::from_lane(value,
                                        ccamerge::emulation::lane() ^ static_cast<unsigned>(mask));
}

template <class T>
T atomicMax(T* at, T value) {
  T before = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (before < value && !__atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_RELAXED,
                                                        __ATOMIC_RELAXED)) {
  }
  return before;
}
