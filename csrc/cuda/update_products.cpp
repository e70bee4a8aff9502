// An update by matrix products: operands are written to memory, cuBLAS multiplies them.
#include <algorithm>

#include "cuda/update_routes.hpp"

namespace ccamerge::cuda {
namespace {

// Samples whose products are summed in the compute type before they are added in float64. Splitting
// float32 makes six products a sample. Products of 16-bit numbers are cheap enough for writing
// their sums out to matter, so those are written less often. Matrix units round sums towards zero:
// by 1e-5 of the mean square at 4096 samples.
constexpr std::int64_t kPlaneRows = 512, kNarrowRows = 2048, kDoubleRows = 4096;

// A model's own block is multiplied in bands of so many rows, each from its diagonal on.
constexpr std::int64_t kBand = 1024;

// Rows and columns of a block from (row, column) on.
struct Band {
  std::size_t row_model, column_model;
  std::int64_t row, column, rows, columns;
};

class ProductUpdate final : public UpdateRoute {
 public:
  ProductUpdate(const UpdateInput& input, const BlockTable& table, const Limits& limits,
                const Allocate& allocate)
      : input_(input), table_(table), limits_(limits) {
    plan();
    memory_ = Arena(allocate, [this](auto&& part) { lay_out(part); }).memory();
  }

  void queue(const Storage& storage, long long number, cudaStream_t stream) override {
    storage_ = &storage;
    number_ = number;
    stream_ = stream;
    batches_ = input_.batches(storage);
    for (Batch& batch : batches_) {
      for (int i = 0; i < batch.models; ++i) {
        const std::size_t m = static_cast<std::size_t>(batch.first + i);
        batch.target[i] = {operands_[m], rows_, stride(m)};
      }
      double* const* const chosen = &chosen_[static_cast<std::size_t>(batch.first)];
      choose_shifts(batch, input_.form, chosen, stream_);
      std::copy_n(chosen, batch.models, batch.shift);
    }
    const Handles handles(stream_);
    const bool once = pass_ >= input_.samples;
    if (!once) look();
    for (std::int64_t from = 0; from < input_.samples; from += pass_) {
      const std::int64_t to = std::min(input_.samples, from + pass_);
      for (const Batch& batch : batches_) {
        pack(batch, input_.form, from, to, once ? sums_of(batch) : Sums{}, storage.state, stream_);
      }
      if (once) centre();
      multiply(handles, from, to);
    }
    const std::vector<double*> none(models());
    const std::vector<double*>& chosen = input_.keeps_shift() ? chosen_ : none;
    for (const Batch& batch : batches_) {
      const auto first = static_cast<std::size_t>(batch.first);
      finish(batch, &centres_[first], &chosen[first], &storage.shifts[first], &storage.means[first],
             storage.state, &batch == &batches_.back(), stream_);
    }
  }

 private:
  std::size_t models() const { return input_.models(); }
  std::size_t width(std::size_t model) const {
    return static_cast<std::size_t>(input_.features[model].count);
  }
  // Elements between an operand's rows.
  std::int64_t stride(std::size_t model) const {
    constexpr std::int64_t aligned = 8;
    return ceil_div(input_.features[model].count, aligned) * aligned;
  }
  std::size_t product_item() const {
    return input_.form == Form::doubles ? sizeof(double) : sizeof(float);
  }

  // How many samples make a chunk, and how many a pass over the operands' memory.
  void plan() {
    const Form form = input_.form;
    rows_ = form == Form::planes ? kPlaneRows : form == Form::doubles ? kDoubleRows : kNarrowRows;
    rows_ = std::min(rows_, ceil_div<std::int64_t>(input_.samples, 32) * 32);
    std::int64_t row_bytes = 0;
    for (std::size_t m = 0; m < models(); ++m) {
      row_bytes += stride(m) * slabs_of(form) * static_cast<std::int64_t>(item_of(form));
    }
    const auto most = static_cast<std::int64_t>(limits_.operand_bytes);
    while (rows_ > 256 && rows_ * row_bytes > most) {
      rows_ = ceil_div<std::int64_t>(rows_ / 2, 32) * 32;
    }
    pass_ =
        std::clamp<std::int64_t>(most / (rows_ * row_bytes), 1, ceil_div(input_.samples, rows_)) *
        rows_;
  }

  template <class Part>
  void lay_out(Part&& part) {
    const auto partials = static_cast<std::size_t>(partial_count(input_.samples));
    partials_.resize(models());
    chosen_.resize(models());
    centres_.resize(models());
    operands_.resize(models());
    part(partials, selected_);
    for (std::size_t m = 0; m < models(); ++m) {
      part(partials * width(m), partials_[m]);
      part(width(m), chosen_[m]);
      centres_[m].lay_out(width(m), part);
      part(static_cast<std::size_t>(pass_ * stride(m)) *
               static_cast<std::size_t>(slabs_of(input_.form)) * item_of(input_.form),
           operands_[m]);
    }
    part(product_bytes(), products_);
  }

  // Of the largest set of products that is formed before it is added.
  std::size_t product_bytes() const {
    std::size_t most = 0;
    for (const auto& [row, column] : table_.blocks()) {
      const std::size_t one = static_cast<std::size_t>(std::min(table_.dim(row), kBand)) *
                              static_cast<std::size_t>(table_.dim(column)) * product_item();
      most = std::max(most, one * static_cast<std::size_t>(group_of(one, ceil_div(pass_, rows_))));
    }
    return most;
  }

  // How many chunks' products, of so many bytes each, are formed before they are added.
  std::int64_t group_of(std::size_t bytes, std::int64_t chunks) const {
    return std::clamp<std::int64_t>(static_cast<std::int64_t>(limits_.product_bytes / bytes), 1,
                                    chunks);
  }

  Sums sums_of(const Batch& batch) const {
    Sums sums;
    std::copy_n(partials_.begin() + batch.first, batch.models, sums.partials);
    sums.selected = selected_;
    return sums;
  }

  // Sums of all samples, before any is multiplied: nothing must be added of an update that turns
  // out to hold a bad element further on.
  void look() {
    for (const Batch& batch : batches_) {
      pack(batch, Form::none, 0, input_.samples, sums_of(batch), storage_->state, stream_);
    }
    centre();
  }

  void centre() {
    for (const Batch& batch : batches_) {
      const auto first = static_cast<std::size_t>(batch.first);
      derive_centres(batch, sums_of(batch), partial_count(input_.samples), &storage_->means[first],
                     &centres_[first], storage_->state, number_, stream_);
    }
  }

  void multiply(const Handles& handles, std::int64_t from, std::int64_t to) {
    for (std::size_t b = 0; b < storage_->totals.size(); ++b) {
      const Total& total = storage_->totals[b];
      const auto [row, column] = table_.blocks()[b];
      for (std::int64_t r = 0; r < total.rows; r += kBand) {
        const std::int64_t c = total.own ? r : 0;
        const Band band{static_cast<std::size_t>(row),
                        static_cast<std::size_t>(column),
                        r,
                        c,
                        std::min(kBand, total.rows - r),
                        total.columns - c};
        if (input_.form == Form::doubles) {
          multiply_band<double>(handles, total, band, from, to);
        } else {
          multiply_band<float>(handles, total, band, from, to);
        }
      }
    }
  }

  template <class T>
  void multiply_band(const Handles& handles, const Total& total, const Band& band,
                     std::int64_t from, std::int64_t to) {
    const std::int64_t size = band.rows * band.columns;
    const std::int64_t chunks = ceil_div(to - from, rows_);
    const std::int64_t group = group_of(static_cast<std::size_t>(size) * sizeof(T), chunks);
    T* const memory = reinterpret_cast<T*>(products_);
    for (std::int64_t chunk = 0; chunk < chunks; chunk += group) {
      const std::int64_t parts = std::min(group, chunks - chunk);
      product(handles, band, chunk, parts, memory);
      Products<T> products;
      products.data = memory;
      products.row = band.row;
      products.column = band.column;
      products.rows = band.rows;
      products.columns = products.stride = band.columns;
      products.part_stride = size;
      products.parts = parts;
      products.last = to == input_.samples && chunk + parts == chunks;
      add(total, products, centres_[band.row_model], centres_[band.column_model], storage_->state,
          stream_);
    }
  }

  // `count` products over a chunk each. Row-major results are column-major ones of the transpose,
  // so the columns' operand comes first.
  void product(const Handles& handles, const Band& band, std::int64_t chunk, std::int64_t count,
               void* to) const {
    const auto operand = [&](std::size_t model, std::int64_t feature, bool second) {
      const std::int64_t slab = rows_ * stride(model), step = slab * slabs_of(input_.form);
      std::int64_t at = chunk * step + feature;
      if (second && input_.form == Form::planes) at += slab;
      return Handles::Operand{
          operands_[model] + at * static_cast<std::int64_t>(item_of(input_.form)),
          static_cast<int>(stride(model)), step, second};
    };
    const std::int64_t inner = rows_ * (input_.form == Form::planes ? kPlaneProducts : 1);
    handles.multiply(input_.number, static_cast<int>(band.columns), static_cast<int>(band.rows),
                     static_cast<int>(inner), 1.0, operand(band.column_model, band.column, false),
                     operand(band.row_model, band.row, true), 0.0, to,
                     static_cast<int>(band.columns), band.rows * band.columns,
                     static_cast<int>(count));
  }

  const UpdateInput& input_;
  const BlockTable& table_;
  const Limits limits_;
  const Storage* storage_ = nullptr;
  long long number_ = 0;
  cudaStream_t stream_ = nullptr;
  Buffer memory_;
  std::int64_t rows_ = 0, pass_ = 0;
  std::vector<Batch> batches_;
  std::vector<Partial*> partials_;  // in the workspace, as all that follow
  std::vector<double*> chosen_;
  std::vector<Centre> centres_;
  std::vector<std::byte*> operands_;
  long long* selected_ = nullptr;
  std::byte* products_ = nullptr;
};

}  // namespace

std::unique_ptr<UpdateRoute> product_route(const UpdateInput& input, const BlockTable& table,
                                           const Limits& limits, const Allocate& allocate) {
  return std::make_unique<ProductUpdate>(input, table, limits, allocate);
}

}  // namespace ccamerge::cuda
