// An update by matrix products: the samples are looked at, then written to memory as operands,
// which cuBLAS multiplies.
#include <algorithm>

#include "cuda/moments/operands.hpp"
#include "cuda/moments/product_jobs.hpp"
#include "cuda/moments/update_routes.hpp"

namespace ccamerge::cuda {
namespace {

// Samples whose products are summed in the compute type before they are added in float64. Matrix
// units round sums towards zero: on an H200 by 8e-6 of the mean square at 1024 samples, and in
// proportion to their number.
constexpr std::int64_t kSingleRows = 512, kNarrowRows = 1024, kDoubleRows = 4096;
constexpr std::int64_t kLeastRows = 256;
constexpr std::int64_t kMostInBatch = 65535;  // products that a call of the library makes

class ProductUpdate final : public UpdateRoute {
 public:
  ProductUpdate(const UpdateInput& input, const BlockTable& table, const Limits& limits,
                int multiprocessors, const Allocate& allocate)
      : input_(input), table_(table), axis_(table) {
    plan(limits, multiprocessors);
    memory_ = Arena(allocate, [this](auto&& part) { lay_out(part); }).memory();
  }

  void queue(const Storage& storage, long long number, cudaStream_t stream) override {
    storage_ = &storage;
    stream_ = stream;
    std::vector<Batch> batches = input_.batches(storage);
    for (Batch& batch : batches) {
      const auto first = static_cast<std::size_t>(batch.first);
      if (input_.form == Form::singles) std::copy_n(&scales_[first], batch.models, batch.scale);
      look(batch, input_.form, sums_of(batch), storage.state, stream);
    }
    for (Batch& batch : batches) {
      const auto first = static_cast<std::size_t>(batch.first);
      derive_centres(batch, input_.form, sums_of(batch), &storage.means[first], &centres_[first],
                     &chosen_[first], storage.state, stream);
      std::copy_n(&chosen_[first], batch.models, batch.shift);
    }
    const Handles handles(stream);
    for (std::int64_t from = 0; from < input_.samples; from += pass_) {
      const std::int64_t to = std::min(input_.samples, from + pass_);
      for (const Batch& batch : batches) {
        pack(batch, input_.form, operands_of(batch), from, to, storage.state, stream);
      }
      multiply(handles, ceil_div(to - from, rows_), to == input_.samples);
    }
    for (const Batch& batch : batches) {
      const auto first = static_cast<std::size_t>(batch.first);
      finish(batch, &centres_[first], nullptr, &storage.shifts[first], &storage.means[first],
             storage.state, &batch == &batches.back(), number, stream);
    }
  }

 private:
  std::size_t models() const { return input_.models(); }
  std::size_t product_item() const {
    return input_.form == Form::doubles ? sizeof(double) : sizeof(float);
  }
  // Bytes of the operands of a chunk.
  std::int64_t chunk_bytes() const {
    return rows_ * axis_.width * slabs_of(input_.form) *
           static_cast<std::int64_t>(item_of(input_.form));
  }

  // How many samples make a chunk, how many a pass over the operands' memory, and what is done in a
  // pass.
  void plan(const Limits& limits, int multiprocessors) {
    const auto most_operands = static_cast<std::int64_t>(limits.operand_bytes);
    const auto most_products = static_cast<std::int64_t>(limits.product_bytes / product_item());
    const Form form = input_.form;
    rows_ = form == Form::singles ? kSingleRows : form == Form::narrow ? kNarrowRows : kDoubleRows;
    rows_ = std::min(rows_, ceil_div<std::int64_t>(input_.samples, 64) * 64);
    const auto halve = [&] { rows_ = ceil_div<std::int64_t>(rows_ / 2, 64) * 64; };
    const auto chunks = [&] { return ceil_div(input_.samples, rows_); };
    while (rows_ > kLeastRows && chunk_bytes() > most_operands) halve();
    jobs_ = product_jobs(table_, axis_, most_products / chunks());
    // Shorter chunks where there are too few products to go round.
    while (rows_ > kLeastRows && tiles_of(jobs_) * chunks() < multiprocessors) halve();
    pass_ = std::clamp<std::int64_t>(most_operands / chunk_bytes(), 1, chunks()) * rows_;
    parts_ = look_parts(input_.batch(0), multiprocessors);
    room_ = most_products;
    for (const ProductJob& job : jobs_) room_ = std::max(room_, job.size());
    std::int64_t all = 0;
    for (const ProductJob& job : jobs_) all += job.size() * ceil_div(pass_, rows_);
    room_ = std::min(room_, all);
  }

  template <class Part>
  void lay_out(Part&& part) {
    const auto parts = static_cast<std::size_t>(parts_);
    partials_.resize(models());
    chosen_.resize(models());
    scales_.resize(models());
    centres_.resize(models());
    part(parts, selected_);
    for (std::size_t m = 0; m < models(); ++m) {
      const auto width = static_cast<std::size_t>(input_.features[m].count);
      part(parts * width, partials_[m]);
      part(width, chosen_[m]);
      part(width, scales_[m]);
      centres_[m].lay_out(width, part);
    }
    part(static_cast<std::size_t>(pass_ / rows_ * chunk_bytes()), operands_);
    part(static_cast<std::size_t>(room_) * product_item(), products_);
  }

  Sums sums_of(const Batch& batch) const {
    Sums sums;
    sums.parts = parts_;
    std::copy_n(partials_.begin() + batch.first, batch.models, sums.partials);
    sums.selected = selected_;
    return sums;
  }

  Operands operands_of(const Batch& batch) const {
    Operands to{operands_, rows_, axis_.width, {}};
    std::copy_n(axis_.start.begin() + batch.first, batch.models, to.start);
    return to;
  }

  void multiply(const Handles& handles, std::int64_t chunks, bool last) {
    if (input_.form == Form::doubles) {
      multiply_all<double>(handles, chunks, last);
    } else {
      multiply_all<float>(handles, chunks, last);
    }
  }

  // All jobs of a pass: as many products as there is room for, then they are added.
  template <class T>
  void multiply_all(const Handles& handles, std::int64_t chunks, bool last) {
    T* const room = reinterpret_cast<T*>(products_);
    std::vector<Addend<T>> addends;
    std::int64_t used = 0;
    const auto flush = [&] {
      add(addends, storage_->state, stream_);
      addends.clear();
      used = 0;
    };
    for (const ProductJob& job : jobs_) {
      const std::int64_t most = std::min(room_ / job.size(), kMostInBatch / job.models);
      const std::int64_t together = std::clamp<std::int64_t>(most, 1, chunks);
      for (std::int64_t chunk = 0; chunk < chunks; chunk += together) {
        const std::int64_t count = std::min(together, chunks - chunk);
        // Parts of one block of totals must not be added side by side.
        if (used + count * job.size() > room_ || chunk > 0) flush();
        product(handles, job, chunk, count, room + used);
        for (const ProductPart& part : parts_of(job, table_, axis_)) {
          const auto [row, column] = table_.blocks()[part.block];
          Addend<T>& one = addends.emplace_back();
          one.total = storage_->totals[part.block];
          one.rows = centres_[static_cast<std::size_t>(row)];
          one.columns = centres_[static_cast<std::size_t>(column)];
          one.data = room + used + part.offset;
          one.row = part.row;
          one.column = part.column;
          one.height = part.height;
          one.width = part.width;
          one.stride = job.columns;
          one.part_stride = job.size();
          one.parts = count;
          one.last = last && chunk + count == chunks;
        }
        used += count * job.size();
      }
    }
    flush();
  }

  // A job's products over `count` chunks. Row-major results are column-major ones of the transpose,
  // so the columns' operand comes first.
  void product(const Handles& handles, const ProductJob& job, std::int64_t chunk,
               std::int64_t count, void* to) const {
    const std::int64_t length = rows_ * slabs_of(input_.form);
    const auto operand = [&](std::int64_t feature, bool second) {
      std::int64_t at = (chunk * axis_.width + feature) * length;
      if (second && input_.form == Form::singles) at += rows_;
      return Handles::Operand{operands_ + at * static_cast<std::int64_t>(item_of(input_.form)),
                              static_cast<int>(length),
                              (job.models > 1 ? job.step : axis_.width) * length, !second};
    };
    const std::int64_t inner = rows_ * (input_.form == Form::singles ? kSlabProducts : 1);
    handles.multiply(input_.number, static_cast<int>(job.columns), static_cast<int>(job.rows),
                     static_cast<int>(inner), 1.0, operand(job.column, false),
                     operand(job.row, true), 0.0, to, static_cast<int>(job.columns),
                     job.rows * job.columns, static_cast<int>(count * job.models));
  }

  const UpdateInput& input_;
  const BlockTable& table_;
  const FeatureAxis axis_;
  const Storage* storage_ = nullptr;
  cudaStream_t stream_ = nullptr;
  Buffer memory_;
  std::int64_t rows_ = 0, pass_ = 0, parts_ = 0;
  std::int64_t room_ = 0;  // for so many elements of products
  std::vector<ProductJob> jobs_;
  std::vector<Partial*> partials_;  // in the workspace, as all that follow
  std::vector<double*> chosen_;
  std::vector<float*> scales_;
  std::vector<Centre> centres_;
  std::byte* operands_ = nullptr;
  long long* selected_ = nullptr;
  std::byte* products_ = nullptr;
};

}  // namespace

std::unique_ptr<UpdateRoute> product_route(const UpdateInput& input, const BlockTable& table,
                                           const Limits& limits, int multiprocessors,
                                           const Allocate& allocate) {
  return std::make_unique<ProductUpdate>(input, table, limits, multiprocessors, allocate);
}

}  // namespace ccamerge::cuda
