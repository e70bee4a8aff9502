// A borrowed, strided array of features, whose axes are split into feature axes and the rest, the
// sample axes. Knows neither Python nor DLPack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/dtype.hpp"

namespace ccamerge {

// Strides count elements and may be zero or negative. A sample's features are the elements over all
// feature axes, counted with the last axis fastest: channels, or what a convolution reads.
struct FeatureView {
  const std::byte* data = nullptr;
  DType dtype = DType::float32;
  std::vector<std::int64_t> feature_shape;    // in the order in which the features are counted
  std::vector<std::int64_t> feature_strides;  // of the same length
  std::vector<std::int64_t> sample_shape;     // in the array's order, feature axes left out
  std::vector<std::int64_t> sample_strides;   // of the same length

  std::int64_t features() const { return product(feature_shape); }
  std::int64_t samples() const { return product(sample_shape); }

 private:
  static std::int64_t product(const std::vector<std::int64_t>& shape) {
    std::int64_t n = 1;
    for (const std::int64_t extent : shape) n *= extent;
    return n;
  }
};

// Where each feature (features,) lies from the first one, in elements.
inline std::vector<std::ptrdiff_t> feature_offsets(const FeatureView& view) {
  std::vector<std::ptrdiff_t> offsets{0};
  for (std::size_t a = 0; a < view.feature_shape.size(); ++a) {
    std::vector<std::ptrdiff_t> next;
    next.reserve(offsets.size() * static_cast<std::size_t>(view.feature_shape[a]));
    for (const std::ptrdiff_t offset : offsets) {
      for (std::int64_t i = 0; i < view.feature_shape[a]; ++i) {
        next.push_back(offset + i * view.feature_strides[a]);
      }
    }
    offsets = std::move(next);
  }
  return offsets;
}

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
