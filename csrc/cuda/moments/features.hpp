// One model's features as kernels see them.
#pragma once

#include <cstdint>

#include "common/dtype.hpp"
#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

inline constexpr int kMostAxes = 6;

// Axes of an array, the last one fastest. Strides count elements.
struct Axes {
  int count = 0;
  std::int64_t extent[kMostAxes] = {};
  std::int64_t stride[kMostAxes] = {};

  // Where the index-th element along them lies.
  __host__ __device__ std::int64_t offset(std::int64_t index) const {
    return count == 1 ? index * stride[0] : offset_along(index);
  }

 private:
  // Not inlined: kernels would grow beyond what the instruction cache holds.
  __host__ __device__ CCAMERGE_NOINLINE std::int64_t offset_along(std::int64_t index) const {
    std::int64_t at = 0;
    // Most arrays have fewer than 2^32 elements, and 32-bit divisions are several times faster.
    if (index <= 0xffffffffll) {
      auto rest = static_cast<std::uint32_t>(index);
      for (int a = count - 1; a > 0; --a) {
        const auto size = static_cast<std::uint32_t>(extent[a]);
        at += static_cast<std::int64_t>(rest % size) * stride[a];
        rest /= size;
      }
      return at + static_cast<std::int64_t>(rest) * stride[0];
    }
    for (int a = count - 1; a > 0; --a) {
      at += index % extent[a] * stride[a];
      index /= extent[a];
    }
    return at + index * stride[0];
  }
};

// Threads take groups of neighbours: of samples where these lie side by side, else of features.
inline constexpr int kSampleGroup = 8, kFeatureGroup = 4;

struct Features {
  const void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t count = 0;  // of features
  Axes samples, features;
  // Of the groups that threads take, from the first sample or feature on: whether a group's
  // elements lie `step` apart, and whether they can be loaded as vectors.
  bool grouped = false, vectors = false;
  std::int64_t step = 0;
};

}  // namespace ccamerge::cuda
