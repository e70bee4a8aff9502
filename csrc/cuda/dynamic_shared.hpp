// The shared memory whose size a launch gives. For kernels only.
#pragma once

#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

__device__ inline unsigned char* dynamic_shared() {
#ifdef CCAMERGE_EMULATED
  return static_cast<unsigned char*>(emulation::dynamic_shared_memory());
#else
  extern __shared__ __align__(16) unsigned char shared[];
  return shared;
#endif
}

}  // namespace ccamerge::cuda
