#include "cuda/update_input.hpp"

#include <algorithm>
#include <cstdlib>

#include "check.hpp"

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

Features features_of(const FeatureView& given) {
  const FeatureView view = collapse(given);
  Features out;
  out.data = view.data;
  out.dtype = view.dtype;
  out.count = view.features();
  out.samples = axes_of(view.sample_shape, view.sample_strides);
  out.features = axes_of(view.feature_shape, view.feature_strides);
  const auto step = [](const std::vector<std::int64_t>& strides) {
    return strides.empty() ? std::int64_t{1} : std::abs(strides.back());
  };
  out.by_samples = step(view.sample_strides) < step(view.feature_strides);
  return out;
}

}  // namespace

UpdateInput::UpdateInput(const Update& update)
    : samples(update.features.front().samples()), mask(update.mask) {
  const DType first = update.features.front().dtype;
  bool wide = false, narrow = true;
  for (const FeatureView& view : update.features) {
    features.push_back(features_of(view));
    wide |= view.dtype == DType::float64;
    narrow &= view.dtype == first && (first == DType::float16 || first == DType::bfloat16);
  }
  if (wide) {
    form = Form::doubles;
    number = Number::float64;
  } else if (narrow) {
    form = Form::narrow;
    number = first == DType::float16 ? Number::float16 : Number::bfloat16;
  }
}

std::vector<Batch> UpdateInput::batches(const Storage& storage) const {
  std::vector<Batch> out;
  for (std::size_t first = 0; first < models(); first += kModelsPerLaunch) {
    Batch batch;
    batch.first = static_cast<int>(first);
    batch.models = static_cast<int>(std::min<std::size_t>(kModelsPerLaunch, models() - first));
    batch.samples = samples;
    batch.mask = mask;
    for (int i = 0; i < batch.models; ++i) {
      const std::size_t m = first + static_cast<std::size_t>(i);
      batch.features[i] = features[m];
      batch.shift[i] = storage.shifts[m];
    }
    out.push_back(batch);
  }
  return out;
}

}  // namespace ccamerge::cuda
