#include "cpu/moments/samples.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ccamerge {

SampleList::SampleList(std::int64_t total, const std::uint8_t* mask) {
  std::int64_t filled = 0;  // samples in the open sub-block
  auto add = [&](std::int64_t first, std::int64_t count) {
    selected_ += count;
    while (count > 0) {
      if (filled == 0) starts_.push_back(segments_.size());
      const std::int64_t part = std::min(count, block_samples - filled);
      segments_.push_back({first, part});
      first += part;
      count -= part;
      filled = (filled + part) % block_samples;
    }
  };
  if (mask) {
    for (std::int64_t i = 0; i < total;) {
      if (!mask[i]) {
        ++i;
        continue;
      }
      const std::int64_t first = i;
      while (i < total && mask[i]) ++i;
      add(first, i - first);
    }
  } else {
    add(0, total);
  }
  starts_.push_back(segments_.size());
}

std::int64_t SampleList::samples(std::int64_t block) const {
  return std::min(block_samples, selected_ - block * block_samples);
}

namespace {

// All ones in the exponent is an infinity or a NaN.
bool finite(Half x) { return (x.bits & 0x7c00u) != 0x7c00u; }
bool finite(Bfloat x) { return (x.bits & 0x7f80u) != 0x7f80u; }
template <class T>
bool finite(T x) {
  return std::isfinite(x);
}

}  // namespace

Position find_nonfinite(const FeatureView& view, const SampleList& list) {
  return visit_dtype(view.dtype, [&](auto* type) {
    using Source = std::remove_cv_t<std::remove_pointer_t<decltype(type)>>;
    const std::vector<std::ptrdiff_t> offsets = feature_offsets(view);
    Position found;
    for (std::int64_t block = 0; block < list.blocks(); ++block) {
      for (const Segment* s = list.begin(block); s != list.end(block); ++s) {
        std::int64_t sample = s->first;
        for_each_run(view, *s, [&](const std::byte* at, std::int64_t stride, std::int64_t count) {
          const auto* first = reinterpret_cast<const Source*>(at);
          for (std::int64_t k = 0; k < count && found.sample < 0; ++k, ++sample) {
            for (std::size_t f = 0; f < offsets.size(); ++f) {
              if (finite(first[k * stride + offsets[f]])) continue;
              found = {sample, static_cast<std::int64_t>(f)};
              break;
            }
          }
        });
        if (found.sample >= 0) return found;
      }
    }
    return found;
  });
}

}  // namespace ccamerge
