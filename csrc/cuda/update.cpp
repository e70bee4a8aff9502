// The update of moments on a device: what becomes of the features, which memory that takes, and the
// kernels and products in order.
#include <algorithm>
#include <array>

#include "check.hpp"
#include "cuda/libraries.hpp"
#include "cuda/moments.hpp"
#include "cuda/statistics.hpp"

namespace ccamerge::cuda {
namespace {

constexpr std::size_t kOperandBytes = std::size_t{384}
                                      << 20;  // at most, unless one chunk needs more
constexpr std::size_t kProductBytes = std::size_t{128} << 20;  // likewise

// Samples whose products are summed in the compute type before they are added in float64. Splitting
// float32 makes six products a sample. Exact products of 16-bit numbers are cheap enough for
// writing their sums out to matter, so those are written less often.
constexpr std::int64_t kPlaneRows = 1024, kRawRows = 4096, kDoubleRows = 4096;

// A model's own block is multiplied in bands of so many rows, each from its diagonal on.
constexpr std::int64_t kBand = 1024;

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

// Whether a matrix product can read the features where they lie, at full speed.
bool in_place(const Features& features, bool masked) {
  constexpr std::int64_t aligned = 8;  // elements: 16 bytes
  return !masked && features.features.count == 1 && features.samples.count == 1 &&
         features.features.stride[0] == 1 && features.samples.stride[0] >= features.count &&
         features.samples.stride[0] % aligned == 0 &&
         reinterpret_cast<std::uintptr_t>(features.data) % 16 == 0;
}

}  // namespace

// One accumulator's part of a call. Friend of Moments.
class Updater {
 public:
  Updater(const Update& update, long long number, cudaStream_t stream)
      : moments_(*update.moments),
        number_(number),
        stream_(stream),
        samples_(update.features.front().samples()) {
    bool wide = false, narrow = true;
    const DType first = update.features.front().dtype;
    bool all_in_place = true;
    for (const FeatureView& view : update.features) {
      features_.push_back(features_of(view));
      wide |= view.dtype == DType::float64;
      narrow &= view.dtype == first && (first == DType::float16 || first == DType::bfloat16);
      all_in_place &= in_place(features_.back(), update.mask);
    }
    if (wide) {
      form_ = Form::doubles;
      number_type_ = Number::float64;
    } else if (narrow) {
      form_ = all_in_place ? Form::none : Form::raw;
      number_type_ = first == DType::float16 ? Number::float16 : Number::bfloat16;
    } else {
      form_ = Form::planes;
      number_type_ = Number::bfloat16;
    }
    mask_ = update.mask;
    plan();
  }

  static std::mutex& mutex(Moments& moments) { return moments.mutex_; }
  // Keeps an update's label; returns the update's number.
  static long long note(Moments& moments, const std::string& label) {
    moments.labels_.push_back(label);
    return static_cast<long long>(moments.labels_.size()) - 1;
  }

  void run(const Allocate& allocate) {
    Arena arena;
    lay_out(arena, true);
    arena.allocate(allocate);
    lay_out(arena, false);
    const Handles handles(stream_);
    if (shifted()) {
      each([&](Batch& batch, std::size_t first) {
        choose_shifts(batch, &chosen_[first], form_ == Form::doubles, stream_);
        for (int i = 0; i < batch.models; ++i) {
          batch.shift[i] = chosen_[first + static_cast<std::size_t>(i)];
        }
      });
    }
    const bool once = form_ != Form::none && pass_ >= samples_;
    if (!once) look();
    for (std::int64_t from = 0; from < samples_; from += pass_) {
      const std::int64_t to = std::min(samples_, from + pass_);
      if (form_ != Form::none) {
        each([&](Batch& batch, std::size_t first) {
          pack(batch, form_, from, to, once ? sums_of(first) : Sums{}, moments_.state_, stream_);
        });
      }
      if (once) centre();
      multiply(handles, from, to);
    }
    each([&](Batch& batch, std::size_t first) {
      finish(batch, &centres_[first], &chosen_[first], &moments_.shifts_[first],
             &moments_.means_[first], moments_.state_,
             first + static_cast<std::size_t>(batch.models) == features_.size(), stream_);
    });
  }

 private:
  bool shifted() const { return form_ == Form::planes || form_ == Form::doubles; }
  std::size_t models() const { return features_.size(); }
  std::size_t width(std::size_t model) const {
    return static_cast<std::size_t>(features_[model].count);
  }
  // Elements between an operand's rows.
  std::int64_t stride(std::size_t model) const {
    constexpr std::int64_t aligned = 8;
    return form_ == Form::none ? features_[model].samples.stride[0]
                               : ceil_div(features_[model].count, aligned) * aligned;
  }
  std::size_t product_item() const {
    return form_ == Form::doubles ? sizeof(double) : sizeof(float);
  }

  // How many samples make a chunk, and how many a pass over the operands' memory.
  void plan() {
    rows_ = form_ == Form::planes ? kPlaneRows : form_ == Form::doubles ? kDoubleRows : kRawRows;
    rows_ = std::min(rows_, ceil_div<std::int64_t>(samples_, 32) * 32);
    std::int64_t row_bytes = 0;
    for (std::size_t m = 0; m < models(); ++m) {
      row_bytes += stride(m) * slabs_of(form_) * static_cast<std::int64_t>(item_of(form_));
    }
    constexpr auto most = static_cast<std::int64_t>(kOperandBytes);
    while (form_ != Form::none && rows_ > 256 && rows_ * row_bytes > most) {
      rows_ = ceil_div<std::int64_t>(rows_ / 2, 32) * 32;
    }
    const std::int64_t chunks = ceil_div(samples_, rows_);
    const std::int64_t fit =
        form_ == Form::none ? chunks : std::max<std::int64_t>(1, most / (rows_ * row_bytes));
    pass_ = std::min(chunks, fit) * rows_;
  }

  // Twice: once to count the memory, once to hand it out.
  void lay_out(Arena& arena, bool counting) {
    const auto part = [&]<class T>(std::size_t count, T*& at) {
      if (counting) {
        arena.need<T>(count);
      } else {
        at = arena.take<T>(count);
      }
    };
    const auto partials = static_cast<std::size_t>(partial_count(samples_));
    partials_.resize(models());
    chosen_.assign(models(), nullptr);
    centres_.resize(models());
    operands_.assign(models(), nullptr);
    part(partials, selected_);
    for (std::size_t m = 0; m < models(); ++m) {
      part(partials * width(m), partials_[m]);
      if (shifted()) part(width(m), chosen_[m]);
      part(width(m), centres_[m].sum);
      part(width(m), centres_[m].offset);
      part(width(m), centres_[m].delta);
      part(width(m), centres_[m].keep);
      if (form_ != Form::none) {
        part(static_cast<std::size_t>(pass_ * stride(m)) *
                 static_cast<std::size_t>(slabs_of(form_)) * item_of(form_),
             operands_[m]);
      }
    }
    part(product_bytes(), products_);
    if (!counting) make_batches();
  }

  // The largest set of products that is formed before it is added.
  std::size_t product_bytes() const {
    std::size_t most = 0;
    for (const auto& [row, column] : moments_.table_.blocks()) {
      const std::size_t one = static_cast<std::size_t>(std::min(moments_.table_.dim(row), kBand)) *
                              static_cast<std::size_t>(moments_.table_.dim(column)) *
                              product_item();
      const std::size_t parts = static_cast<std::size_t>(ceil_div(pass_, rows_));
      most = std::max(most, one * std::min(parts, std::max<std::size_t>(1, kProductBytes / one)));
    }
    return most;
  }

  void make_batches() {
    for (std::size_t first = 0; first < models(); first += kModelsPerLaunch) {
      Batch batch;
      batch.first = static_cast<int>(first);
      batch.models = static_cast<int>(std::min<std::size_t>(kModelsPerLaunch, models() - first));
      batch.samples = samples_;
      batch.mask = mask_;
      for (int i = 0; i < batch.models; ++i) {
        const std::size_t m = first + static_cast<std::size_t>(i);
        batch.features[i] = features_[m];
        if (shifted()) batch.shift[i] = moments_.shifts_[m];
        batch.target[i] = {operands_[m], rows_, stride(m)};
      }
      batches_.push_back(batch);
    }
  }

  template <class Run>
  void each(Run&& run) {
    for (Batch& batch : batches_) run(batch, static_cast<std::size_t>(batch.first));
  }

  Sums sums_of(std::size_t first) const {
    Sums sums;
    for (std::size_t i = 0; i < kModelsPerLaunch && first + i < models(); ++i) {
      sums.partials[i] = partials_[first + i];
    }
    sums.selected = selected_;
    return sums;
  }

  // Sums of all samples, before any is multiplied: nothing must be added of an update that turns
  // out to hold a bad element further on.
  void look() {
    each([&](Batch& batch, std::size_t first) {
      pack(batch, Form::none, 0, samples_, sums_of(first), moments_.state_, stream_);
    });
    centre();
  }

  void centre() {
    each([&](Batch& batch, std::size_t first) {
      derive_centres(batch, sums_of(first), &moments_.means_[first], &centres_[first],
                     moments_.state_, number_, stream_);
    });
  }

  void multiply(const Handles& handles, std::int64_t from, std::int64_t to) {
    const auto& blocks = moments_.table_.blocks();
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      const Total& total = moments_.totals_[b];
      const auto row = static_cast<std::size_t>(blocks[b].first),
                 column = static_cast<std::size_t>(blocks[b].second);
      for (std::int64_t r = 0; r < total.rows; r += kBand) {
        const std::int64_t c = total.own ? r : 0;
        const Band band{row, column, r, c, std::min(kBand, total.rows - r), total.columns - c};
        if (form_ == Form::doubles) {
          multiply_band<double>(handles, total, band, from, to);
        } else {
          multiply_band<float>(handles, total, band, from, to);
        }
      }
    }
  }

  struct Band {
    std::size_t row_model, column_model;
    std::int64_t row, column, rows, columns;
  };

  template <class T>
  void multiply_band(const Handles& handles, const Total& total, const Band& band,
                     std::int64_t from, std::int64_t to) {
    const std::int64_t size = band.rows * band.columns;
    const auto fit = static_cast<std::int64_t>(kProductBytes / sizeof(T)) / size;
    const std::int64_t chunks = ceil_div(to - from, rows_);
    const std::int64_t group = std::clamp<std::int64_t>(fit, 1, chunks);
    for (std::int64_t chunk = 0; chunk < chunks; chunk += group) {
      const std::int64_t parts = std::min(group, chunks - chunk);
      // Operands are filled up with zeros, but what is read in place ends in a shorter chunk.
      const std::int64_t end = std::min(to - from, (chunk + parts) * rows_) - chunk * rows_;
      const std::int64_t full = form_ == Form::none ? end / rows_ : parts;
      T* const to_products = reinterpret_cast<T*>(products_);
      if (full > 0) product(handles, band, from, chunk, rows_, full, to_products);
      if (full < parts) {
        product(handles, band, from, chunk + full, end - full * rows_, 1,
                to_products + full * size);
      }
      Products<T> products;
      products.data = to_products;
      products.row = band.row;
      products.column = band.column;
      products.rows = band.rows;
      products.columns = products.stride = band.columns;
      products.part_stride = size;
      products.parts = parts;
      products.last = to == samples_ && chunk + parts == chunks;
      add(total, products, centres_[band.row_model], centres_[band.column_model], moments_.state_,
          stream_);
    }
  }

  // `count` products over `rows` samples each, from a chunk of the pass on. Row-major results are
  // column-major ones of the transpose, so the columns' operand comes first.
  void product(const Handles& handles, const Band& band, std::int64_t from, std::int64_t chunk,
               std::int64_t rows, std::int64_t count, void* to) const {
    const auto operand = [&](std::size_t model, std::int64_t feature, bool second) {
      const std::int64_t slab = rows_ * stride(model), step = slab * slabs_of(form_);
      const bool placed = form_ == Form::none;
      const auto* const base = static_cast<const std::byte*>(
          placed ? features_[model].data : static_cast<const void*>(operands_[model]));
      std::int64_t at = chunk * step + feature;
      if (placed) at += from * stride(model);
      if (second && form_ == Form::planes) at += slab;
      return Handles::Operand{base + at * static_cast<std::int64_t>(item_of(form_)),
                              static_cast<int>(stride(model)), step, second};
    };
    const std::int64_t inner = rows * (form_ == Form::planes ? kPlaneProducts : 1);
    handles.multiply(number_type_, static_cast<int>(band.columns), static_cast<int>(band.rows),
                     static_cast<int>(inner), 1.0, operand(band.column_model, band.column, false),
                     operand(band.row_model, band.row, true), 0.0, to,
                     static_cast<int>(band.columns), band.rows * band.columns,
                     static_cast<int>(count));
  }

  Moments& moments_;
  long long number_;
  cudaStream_t stream_;
  std::int64_t samples_;
  const std::uint8_t* mask_ = nullptr;
  std::vector<Features> features_;
  Form form_ = Form::planes;
  Number number_type_ = Number::bfloat16;
  std::int64_t rows_ = 0, pass_ = 0;
  std::vector<Batch> batches_;
  std::vector<Partial*> partials_;
  std::vector<double*> chosen_;
  std::vector<Centre> centres_;
  std::vector<std::byte*> operands_;
  long long* selected_ = nullptr;
  std::byte* products_ = nullptr;
};

namespace {

void check_update(const Update& one) {
  if (one.moments->table().models() > 1024 ||
      one.features.front().samples() > std::int64_t{1} << Position::kSampleBits) {
    throw std::invalid_argument("an update on a device takes at most 1024 models and 2^34 samples");
  }
}

}  // namespace

void update(const std::vector<Update>& updates, const std::string& label, const Allocate& allocate,
            cudaStream_t stream) {
  for (const Update& one : updates) check_update(one);
  for (const Update& one : updates) {
    if (one.features.front().samples() == 0) continue;
    std::lock_guard lock(Updater::mutex(*one.moments));
    const DeviceGuard guard(one.moments->device());
    Updater updater(one, Updater::note(*one.moments, label), stream);
    updater.run(allocate);
  }
}

}  // namespace ccamerge::cuda
