#include "cuda/moments/update_input.hpp"

#include <algorithm>
#include <cstdlib>

#include "common/check.hpp"

namespace ccamerge::cuda {
namespace {

Axes axes_of(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
  if (shape.size() > static_cast<std::size_t>(kMostAxes)) {
    throw std::invalid_argument(format_message("features must have at most ", kMostAxes,
                                               " sample and ", kMostAxes,
                                               " feature axes on a device, got ", shape.size()));
  }
  Axes axes;
  axes.count = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), axes.extent);
  std::copy(strides.begin(), strides.end(), axes.stride);
  return axes;
}

// Whether strides, but that of the innermost axis if told so, and extents keep vectors aligned.
bool keeps_aligned(const Axes& axes, bool inner, std::int64_t elements) {
  for (int a = 0; a < axes.count - inner; ++a) {
    if (axes.extent[a] > 1 && axes.stride[a] % elements != 0) return false;
  }
  return true;
}

Features features_of(const FeatureView& view, bool by_samples) {
  Features out;
  out.data = view.data;
  out.dtype = view.dtype;
  out.count = view.features();
  out.samples = axes_of(view.sample_shape, view.sample_strides);
  out.features = axes_of(view.feature_shape, view.feature_strides);
  const Axes& along = by_samples ? out.samples : out.features;
  const Axes& other = by_samples ? out.features : out.samples;
  const int group = by_samples ? kSampleGroup : kFeatureGroup, last = along.count - 1;
  if (last < 0) return out;
  out.step = along.stride[last];
  out.grouped = last == 0 || along.extent[last] % group == 0;
  const auto bytes = static_cast<std::size_t>(group) * item_size(view.dtype);
  const std::size_t piece = std::min<std::size_t>(bytes, 16);
  const auto elements = static_cast<std::int64_t>(piece / item_size(view.dtype));
  out.vectors = out.grouped && out.step == 1 &&
                reinterpret_cast<std::uintptr_t>(view.data) % piece == 0 &&
                keeps_aligned(along, true, elements) && keeps_aligned(other, false, elements);
  return out;
}

bool lies_by_samples(const FeatureView& view) {
  const auto step = [](const std::vector<std::int64_t>& strides) {
    return strides.empty() ? std::int64_t{1} : std::abs(strides.back());
  };
  return step(view.sample_strides) < step(view.feature_strides);
}

bool alike(const Axes& a, const Axes& b) {
  return a.count == b.count && std::equal(a.extent, a.extent + a.count, b.extent) &&
         std::equal(a.stride, a.stride + a.count, b.stride);
}

}  // namespace

UpdateInput::UpdateInput(const Update& update)
    : samples(update.features.front().samples()), mask(update.mask) {
  const DType first = update.features.front().dtype;
  bool wide = false, narrow = true;
  for (const FeatureView& given : update.features) {
    const FeatureView view = collapse(given);
    if (features.empty()) by_samples = lies_by_samples(view);
    features.push_back(features_of(view, by_samples));
    wide |= view.dtype == DType::float64;
    narrow &= view.dtype == first && (first == DType::float16 || first == DType::bfloat16);
    uniform &= view.dtype == first && alike(features.back().samples, features.front().samples);
  }
  if (wide) {
    form = Form::doubles;
    number = Number::float64;
  } else if (narrow) {
    form = Form::narrow;
    number = first == DType::float16 ? Number::float16 : Number::bfloat16;
  }
}

Batch UpdateInput::batch(std::size_t first) const {
  Batch out;
  out.first = static_cast<int>(first);
  out.models = static_cast<int>(std::min<std::size_t>(kModelsPerLaunch, models() - first));
  out.samples = samples;
  out.by_samples = by_samples;
  out.mask = mask;
  std::copy_n(features.begin() + out.first, out.models, out.features);
  return out;
}

std::vector<Batch> UpdateInput::batches(const Storage& storage) const {
  std::vector<Batch> out;
  for (std::size_t first = 0; first < models(); first += kModelsPerLaunch) {
    out.push_back(batch(first));
    std::copy_n(&storage.shifts[first], out.back().models, out.back().shift);
  }
  return out;
}

}  // namespace ccamerge::cuda
