// A borrowed, strided array of features, whose axes are split into one feature axis and the rest,
// the sample axes. Knows neither Python nor DLPack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtype.hpp"

namespace ccamerge {

// Strides count elements and may be zero or negative.
struct FeatureView {
  const std::byte* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t features = 0;
  std::int64_t feature_stride = 1;
  std::vector<std::int64_t> sample_shape;    // in the array's order, feature axis left out
  std::vector<std::int64_t> sample_strides;  // of the same length

  std::int64_t samples() const {
    std::int64_t n = 1;
    for (const std::int64_t extent : sample_shape) n *= extent;
    return n;
  }
};

// The same samples in the same order with as few axes as possible (at least one), so that walking
// them meets the longest straight runs: (B, H, W) of a contiguous (B, C, H, W) becomes (B, H * W).
inline FeatureView collapse(FeatureView view) {
  std::vector<std::int64_t> shape, strides;
  for (std::size_t a = 0; a < view.sample_shape.size(); ++a) {
    const std::int64_t extent = view.sample_shape[a], stride = view.sample_strides[a];
    if (extent == 1) continue;
    if (!shape.empty() && strides.back() == extent * stride) {
      shape.back() *= extent;
      strides.back() = stride;
    } else {
      shape.push_back(extent);
      strides.push_back(stride);
    }
  }
  if (shape.empty()) {
    shape.push_back(view.samples());
    strides.push_back(0);
  }
  view.sample_shape = std::move(shape);
  view.sample_strides = std::move(strides);
  return view;
}

}  // namespace ccamerge
