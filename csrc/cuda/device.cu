#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda/device.hpp"

namespace ccamerge::cuda {
namespace {

void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // clear it: a failed query must not fail the next launch
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(code) + " (" +
                           cudaGetErrorString(code) + ")");
}

}  // namespace

std::vector<Device> devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  std::vector<Device> found;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, i), "cudaGetDeviceProperties");
    found.push_back({p.name, p.major, p.minor, p.totalGlobalMem, p.multiProcessorCount});
  }
  return found;
}

int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return version;
}

}  // namespace ccamerge::cuda
