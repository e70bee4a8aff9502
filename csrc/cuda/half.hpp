// The 16-bit floating-point types on a device, and the splitting of float32 into float16 parts.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.hpp"
#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

__host__ __device__ inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

__host__ __device__ inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

__host__ __device__ inline float infinity32() { return float_of(0x7f800000u); }

// Beyond this (2^56), sums of squares of differences from a shift could overflow float32.
inline constexpr float kLargestFloat = 7.205759403792794e16f;

__host__ __device__ inline float to_float(Bfloat x) {
  return float_of(static_cast<std::uint32_t>(x.bits) << 16);
}

__host__ __device__ inline float to_float(Half x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  // 2^112 brings the exponents' ranges together; it makes subnormal numbers normal on the way.
  const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  if (magnitude >= 0x0f800000u) return float_of(sign | magnitude | 0x7f800000u);  // inf, NaN
  return float_of(sign | bits_of(float_of(magnitude) * float_of(0x77800000u)));
#endif
}

__host__ __device__ inline float to_float(float x) { return x; }

// Rounded to nearest, ties to even; x finite.
__host__ __device__ inline Bfloat to_bfloat(float x) {
  const std::uint32_t bits = bits_of(x);
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Rounded to nearest, ties to even; x finite.
__host__ __device__ inline Half to_half(float x) {
#ifdef __CUDA_ARCH__
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  const std::uint32_t sign = bits_of(x) >> 16 & 0x8000u;
  const float scaled = float_of(bits_of(x) & 0x7fffffffu) * float_of(0x07800000u);  // by 2^-112
  // Subnormal results have lost nothing but what rounds away: the product was exact or subnormal.
  const std::uint32_t bits = bits_of(scaled);
  const std::uint32_t rounded = bits + 0xfffu + (bits >> 13 & 1u);
  const std::uint32_t magnitude = rounded >> 13;
  return {static_cast<std::uint16_t>(sign | (magnitude < 0x7c00u ? magnitude : 0x7c00u))};
#endif
}

// Two numbers in one word, the first in its lower half, as the type of the third argument.
__host__ __device__ inline std::uint32_t paired(float x, float y, Bfloat) {
#ifdef __CUDA_ARCH__
  std::uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(y), "f"(x));
  return result;
#else
  return to_bfloat(x).bits | static_cast<std::uint32_t>(to_bfloat(y).bits) << 16;
#endif
}
__host__ __device__ inline std::uint32_t paired(float x, float y, Half) {
  return to_half(x).bits | static_cast<std::uint32_t>(to_half(y).bits) << 16;
}

// x = high + low to 22 bits or more of the largest x that there is, if that lies between 2^14 and
// 2^15: what is smaller loses no more than 2^-25. The difference is exact.
struct Halves {
  Half high, low;
};
__host__ __device__ inline Halves halves(float x) {
  const Half high = to_half(x);
  return {high, to_half(x - to_float(high))};
}

}  // namespace ccamerge::cuda
