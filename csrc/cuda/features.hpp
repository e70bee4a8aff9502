// One model's features as kernels see them.
#pragma once

#include <cstdint>

#include "cuda/half.hpp"
#include "dtype.hpp"

namespace ccamerge::cuda {

inline constexpr int kMostAxes = 6;

// Axes of an array, the last one fastest. Strides count elements.
struct Axes {
  int count = 0;
  std::int64_t extent[kMostAxes] = {};
  std::int64_t stride[kMostAxes] = {};

  // Where the index-th element along them lies.
  __host__ __device__ std::int64_t offset(std::int64_t index) const {
    if (count == 1) return index * stride[0];
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

struct Features {
  const void* data = nullptr;
  DType dtype = DType::float32;
  bool by_samples = false;  // neighbours in memory are samples, not features
  std::int64_t count = 0;   // of features
  Axes samples, features;
};

// An element as float32 or float64.
template <class T, class Source>
__device__ inline T widened(Source x) {
  return static_cast<T>(to_float(x));
}
template <class T>
__device__ inline T widened(double x) {
  return static_cast<T>(x);
}

// Calls visit with the features' data, of its own type.
template <class Visit>
__device__ inline void with_elements(const Features& features, Visit&& visit) {
  switch (features.dtype) {
    case DType::float16:
      return visit(static_cast<const Half*>(features.data));
    case DType::bfloat16:
      return visit(static_cast<const Bfloat*>(features.data));
    case DType::float32:
      return visit(static_cast<const float*>(features.data));
    case DType::float64:
      return visit(static_cast<const double*>(features.data));
  }
}

}  // namespace ccamerge::cuda
