// Which samples of an update are used, and how a batch of them is packed for the products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "common/view.hpp"
#include "cpu/moments/kernels.hpp"

namespace ccamerge {

// Samples per sub-block: products are summed in the compute type over this many, then in float64.
inline constexpr std::int64_t block_samples = 256;

// Consecutive selected samples, counted along the flattened sample axes.
struct Segment {
  std::int64_t first, count;
};

// The selected samples in order, cut into sub-blocks of block_samples (the last may be shorter).
class SampleList {
 public:
  // mask: (total,) bytes, nonzero for selected; nullptr selects all.
  SampleList(std::int64_t total, const std::uint8_t* mask);

  std::int64_t selected() const { return selected_; }
  std::int64_t blocks() const { return static_cast<std::int64_t>(starts_.size()) - 1; }
  std::int64_t samples(std::int64_t block) const;  // in this sub-block
  const Segment* begin(std::int64_t block) const { return segments_.data() + starts_[block]; }
  const Segment* end(std::int64_t block) const { return segments_.data() + starts_[block + 1]; }

 private:
  std::int64_t selected_ = 0;
  std::vector<Segment> segments_;
  std::vector<std::size_t> starts_;  // (blocks + 1,) first segment of each sub-block
};

// Calls visit(source pointer, sample stride, count) for each straight run of a segment of a
// collapsed view.
template <class Visit>
void for_each_run(const FeatureView& view, Segment segment, Visit&& visit) {
  const auto item = static_cast<std::int64_t>(item_size(view.dtype));
  const std::size_t inner = view.sample_shape.size() - 1;
  while (segment.count > 0) {
    std::int64_t offset = 0, rest = segment.first, before_end = 0;
    for (std::size_t axis = inner + 1; axis-- > 0;) {
      const std::int64_t index = rest % view.sample_shape[axis];
      rest /= view.sample_shape[axis];
      offset += index * view.sample_strides[axis];
      if (axis == inner) before_end = view.sample_shape[axis] - index;
    }
    const std::int64_t count = segment.count < before_end ? segment.count : before_end;
    visit(view.data + offset * item, view.sample_strides[inner], count);
    segment.first += count;
    segment.count -= count;
  }
}

// First non-finite element of the selected samples: its flat sample index and feature, or -1, -1.
struct Position {
  std::int64_t sample = -1, feature = -1;
};
Position find_nonfinite(const FeatureView& view, const SampleList& list);

inline std::int64_t padded(std::int64_t features) {
  return (features + panel_width - 1) / panel_width * panel_width;
}

// Memory for packed data, aligned to cache lines and not touched until used.
class Buffer {
 public:
  std::byte* reserve(std::size_t bytes) {
    if (bytes > size_) {
      data_.reset();
      size_ = 0;
      data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
      size_ = bytes;
    }
    return data_.get();
  }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace ccamerge
