// How kernels read features. For kernels only.
#pragma once

#include "cuda/half.hpp"
#include "cuda/moments/features.hpp"

namespace ccamerge::cuda {

// An element as float32 or float64.
template <class T, class Source>
__device__ inline T widened(Source x) {
  return static_cast<T>(to_float(x));
}
template <class T>
__device__ inline T widened(double x) {
  return static_cast<T>(x);
}

// The elements of a group, from `at` on, whose bits are set in `wanted`; zero for the others.
template <class T, int count, class Source>
__device__ inline void load_group(const Source* at, std::int64_t step, bool vectors,
                                  unsigned wanted, T (&out)[count]) {
  constexpr unsigned all = (1u << count) - 1;
  constexpr int bytes = count * static_cast<int>(sizeof(Source)), piece = bytes < 16 ? bytes : 16;
  constexpr int side = piece / static_cast<int>(sizeof(Source));
  struct alignas(piece) Piece {
    Source of[side];
  };
  if (vectors && wanted == all) {
#pragma unroll
    for (int i = 0; i < count; i += side) {
      const Piece loaded = *reinterpret_cast<const Piece*>(at + i);
#pragma unroll
      for (int j = 0; j < side; ++j) out[i + j] = widened<T>(loaded.of[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      out[i] = wanted >> i & 1u ? widened<T>(at[i * step]) : T{0};
    }
  }
}

// Which of the samples from s on, before `end`, are wanted: by bits.
template <int count>
__device__ inline unsigned wanted_samples(const std::uint8_t* mask, std::int64_t s,
                                          std::int64_t end) {
  if (!mask && s + count <= end) return (1u << count) - 1;
  unsigned found = 0;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (s + i < end && (!mask || mask[s + i])) found |= 1u << i;
  }
  return found;
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
