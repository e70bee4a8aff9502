// One accumulator's part of an update. Samples are walked in chunks; a chunk of all models is
// packed (read once: converted, shifted, transposed into panels, summed), checked, multiplied and
// added. Each element of each block is summed by one task in a fixed order, so the result is the
// same, bit for bit, for any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <mutex>

#include "common/check.hpp"
#include "common/parallel.hpp"
#include "cpu/moments/layout.hpp"
#include "cpu/moments/moments.hpp"
#include "cpu/moments/samples.hpp"

namespace ccamerge {

// What moments are but for their blocks, as a call goes on: what it decides depends on nothing
// else, so a course can be run through before anything is added. The moments take it over at the
// end.
struct Course {
  Vectors vectors;
  std::vector<std::vector<double>> squares;  // centred, of each model's features: own diagonals
};

// Squares of features vanish in float32: they have to be formed in float64.
struct Underflow {};

// One accumulator's part of a call. Friend of Moments.
class Updater {
 public:
  // `wide` has float32 features multiplied in float64, too.
  Updater(const Update& update, bool wide)
      : moments_(*update.moments),
        list_(update.features[0].samples(), update.mask),
        double_(wide ||
                std::any_of(update.features.begin(), update.features.end(),
                            [](const FeatureView& view) { return view.dtype == DType::float64; })),
        kernels_(kernels()),
        tiles_(tiles_of(moments_.blocks_)) {
    std::size_t block_bytes = 0, sums = 0;
    for (const FeatureView& view : update.features) {
      ModelPart part;
      part.view = collapse(view);
      part.features = view.features();
      part.offsets = feature_offsets(view);
      part.adjacent = stretches(part.offsets);
      part.padded = padded(part.features);
      part.block_bytes =
          static_cast<std::size_t>(part.padded / panel_width * panel_stride) * item();
      block_bytes += part.block_bytes;
      sums += static_cast<std::size_t>(part.padded);
      part.shift.resize(static_cast<std::size_t>(part.padded) * item());
      part.sum.resize(static_cast<std::size_t>(part.padded));
      part.delta.resize(static_cast<std::size_t>(part.padded));
      part.square.resize(static_cast<std::size_t>(part.padded));
      input_bytes_ +=
          static_cast<std::size_t>(list_.selected() * part.features) * item_size(view.dtype);
      models_.push_back(std::move(part));
    }
    // Where totals are large beside the input, long chunks: each adds to every total once, and with
    // one chunk nothing has to be copied or looked through first.
    const bool roomy = 16 * total_bytes() > input_bytes_;
    const auto fit = [&](std::size_t bytes) {
      return static_cast<std::int64_t>(bytes / block_bytes);
    };
    const std::int64_t most = fit(most_chunk_bytes);
    chunk_blocks_ = roomy ? most : std::max(fit(chunk_bytes), std::min(least_blocks, most));
    chunk_blocks_ = std::max<std::int64_t>(1, chunk_blocks_);
    const std::int64_t count = (list_.blocks() + chunk_blocks_ - 1) / chunk_blocks_;
    if (count > 0) chunk_blocks_ = (list_.blocks() + count - 1) / count;  // of equal length

    // Small problems have too few tiles to go round, so the samples of a chunk are sliced too.
    slices_ = std::clamp<std::size_t>(wanted_tasks / tiles_.size(), 1,
                                      static_cast<std::size_t>(chunk_blocks_));
    std::size_t tile_doubles = 0;
    for (const Tile& tile : tiles_) {
      tile_at_.push_back(tile_doubles);
      tile_doubles += tile.size();
    }
    slice_doubles_ = tile_doubles;
    if (slices_ == 1) {  // each thread needs one tile at a time
      const auto slots = std::min(static_cast<std::size_t>(num_threads()), tiles_.size());
      const std::size_t size = tile_features * tile_features;
      tile_doubles = slots * size;
      for (std::size_t i = 0; i < slots; ++i) free_slots_.push_back(i * size);
    } else {
      tile_doubles *= slices_;
    }

    const auto blocks = static_cast<std::size_t>(chunk_blocks_);
    packed_bytes_ = block_bytes * blocks;
    sum_bytes_ = 2 * sums * blocks * sizeof(double);
    tile_bytes_ = tile_doubles * sizeof(double);
  }

  // Asks for what attach will need; every updater of a call does so before any of them attaches.
  void reserve(Workspace& workspace) const {
    workspace.packed.reserve(packed_bytes_);
    workspace.sums.reserve(sum_bytes_);
    workspace.tiles.reserve(tile_bytes_);
  }

  void attach(Workspace& workspace) {
    const auto blocks = static_cast<std::size_t>(chunk_blocks_);
    std::byte* packed = workspace.packed.reserve(packed_bytes_);
    auto* sum = reinterpret_cast<double*>(workspace.sums.reserve(sum_bytes_));
    tile_memory_ = reinterpret_cast<double*>(workspace.tiles.reserve(tile_bytes_));
    for (ModelPart& part : models_) {
      part.packed = packed;
      packed += part.block_bytes * blocks;
      part.sums = sum;
      sum += 2 * static_cast<std::size_t>(part.padded) * blocks;
    }
  }

  std::int64_t chunks() const { return (list_.blocks() + chunk_blocks_ - 1) / chunk_blocks_; }
  std::size_t input_bytes() const { return input_bytes_; }
  std::size_t total_bytes() const {
    std::size_t bytes = 0;
    for (const Block& block : moments_.blocks_) bytes += block.m2.size() * sizeof(double);
    return bytes;
  }

  // Throws what run would, without changing totals.
  void check(Course& course) {
    for (std::int64_t c = 0; c < chunks(); ++c) prepare(c, course);
  }

  // Adds to the totals. Throws std::invalid_argument, or Underflow, for a chunk before anything of
  // it is added.
  void run(Course& course, bool interruptible) {
    for (std::int64_t c = 0; c < chunks(); ++c) {
      const Weights weights = prepare(c, course);
      if (interruptible) {
        add_chunk(c, weights);
      } else {
        const InterruptPause pause;
        add_chunk(c, weights);
      }
    }
  }

 private:
  std::size_t item() const { return double_ ? sizeof(double) : sizeof(float); }
  double limit() const { return double_ ? 1e-15 : 5e-7; }  // some roundings of the compute type
  std::int64_t first_block(std::int64_t chunk) const { return chunk * chunk_blocks_; }
  std::int64_t blocks_in(std::int64_t chunk) const {
    return std::min(chunk_blocks_, list_.blocks() - first_block(chunk));
  }

  // A bound on a chunk's sum of squares below which no sum in the compute type can overflow, now
  // or after the shift has moved within the range of the data.
  double most_square() const {
    return (double_ ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max()) / 256;
  }

  double rounded(double shift) const { return double_ ? shift : static_cast<float>(shift); }

  // A chunk's number of samples, and what its means' distance from those before counts.
  struct Weights {
    double samples, delta;
  };

  // Packs the chunk and moves the course on. Anything wrong with the input is found here.
  Weights prepare(std::int64_t chunk, Course& course) {
    std::vector<std::size_t> all;
    for (std::size_t m = 0; m < models_.size(); ++m) all.push_back(m);
    pack_models(chunk, all, course);
    std::vector<std::size_t> off_centre;
    for (const std::size_t m : all) {
      sum_up(chunk, m);
      check_finite(m);
      if (recentre(chunk, m, course.vectors.shifts[m])) off_centre.push_back(m);
    }
    if (!off_centre.empty()) pack_models(chunk, off_centre, course);
    for (const std::size_t m : off_centre) sum_up(chunk, m);
    if (!double_) check_underflow(chunk);
    return advance(chunk, course);
  }

  void pack_models(std::int64_t chunk, const std::vector<std::size_t>& which,
                   const Course& course) {
    for (const std::size_t m : which) {
      ModelPart& part = models_[m];
      const auto& shift = course.vectors.shifts[m];
      for (std::size_t f = 0; f < shift.size(); ++f) {
        if (double_) {
          reinterpret_cast<double*>(part.shift.data())[f] = shift[f];
        } else {
          reinterpret_cast<float*>(part.shift.data())[f] = static_cast<float>(shift[f]);
        }
      }
    }
    const auto blocks = static_cast<std::size_t>(blocks_in(chunk));
    parallel_for(which.size() * blocks, [&](std::size_t task) {
      pack_block(models_[which[task / blocks]], first_block(chunk),
                 static_cast<std::int64_t>(task % blocks));
    });
  }

  void pack_block(ModelPart& part, std::int64_t first, std::int64_t block) {
    const auto dtype = static_cast<std::size_t>(part.view.dtype);
    const Pack pack = double_ ? kernels_.pack_double[dtype] : kernels_.pack_float[dtype];
    double* const sums = part.sums + block * 2 * part.padded;
    std::fill_n(sums, 2 * part.padded, 0.0);
    PackRun run{};
    run.features = part.features;
    run.offsets = part.offsets.data();
    run.adjacent = part.adjacent.data();
    run.shift = part.shift.data();
    run.panel_stride = panel_stride;
    run.sums = sums;
    run.squares = sums + part.padded;
    std::byte* target = part.packed + static_cast<std::size_t>(block) * part.block_bytes;
    for (const Segment* s = list_.begin(first + block); s != list_.end(first + block); ++s) {
      for_each_run(part.view, *s,
                   [&](const std::byte* at, std::int64_t stride, std::int64_t count) {
                     run.source = at;
                     run.sample_stride = stride;
                     run.samples = count;
                     run.target = target;
                     pack(run);
                     target += static_cast<std::size_t>(count * panel_width) * item();
                   });
    }
  }

  void sum_up(std::int64_t chunk, std::size_t m) {
    ModelPart& part = models_[m];
    std::fill(part.sum.begin(), part.sum.end(), 0.0);
    std::fill(part.square.begin(), part.square.end(), 0.0);
    for (std::int64_t b = 0; b < blocks_in(chunk); ++b) {
      const double* const sums = part.sums + b * 2 * part.padded;
      for (std::int64_t f = 0; f < part.padded; ++f) {
        part.sum[f] += sums[f];
        part.square[f] += sums[part.padded + f];
      }
    }
  }

  void check_finite(std::size_t m) const {
    const ModelPart& part = models_[m];
    for (std::int64_t f = 0; f < part.features; ++f) {
      if (part.square[f] <= most_square() && std::isfinite(part.sum[f])) continue;
      const Position at = find_nonfinite(part.view, list_);
      if (at.sample >= 0) {
        throw std::invalid_argument(
            format_message("features of model ", m, " are not finite: first at sample ", at.sample,
                           ", feature ", at.feature, "; mask such samples out or mend the model"));
      }
      throw std::invalid_argument(format_message(
          "features of model ", m, " are too large: squares of feature ", f, " overflow ",
          double_ ? "float64; scale the features down" : "float32; pass float64 features"));
    }
  }

  // Moves the shift to the chunk's mean if a feature lies more than a standard deviation off, since
  // rounding errors grow with the mean square. True if the chunk has to be packed again. What is
  // below the rounding of the shift itself (a constant feature, say) cannot be improved.
  bool recentre(std::int64_t chunk, std::size_t m, std::vector<double>& shift) const {
    const ModelPart& part = models_[m];
    const auto n = static_cast<double>(samples_in(chunk));
    auto off = [&](std::size_t f) {
      const double mean = part.sum[f] / n, square = part.square[f] / n;
      return 2.0 * mean * mean > square && std::abs(mean) > limit() * std::abs(rounded(shift[f]));
    };
    bool any = false;
    for (std::size_t f = 0; f < shift.size() && !any; ++f) any = off(f);
    if (!any) return false;
    for (std::size_t f = 0; f < shift.size(); ++f) {
      const double mean = rounded(shift[f]) + part.sum[f] / n;
      // A constant feature is met exactly, so that its variance comes out as zero.
      const double first = rounded(shift[f]) + packed_value(part, static_cast<std::int64_t>(f));
      shift[f] = rounded(std::abs(first - mean) <= limit() * std::abs(mean) ? first : mean);
    }
    return true;
  }

  // The chunk's first sample, shifted.
  double packed_value(const ModelPart& part, std::int64_t feature) const {
    const std::byte* const at =
        panel(part, 0, feature) + static_cast<std::size_t>(feature % panel_width) * item();
    return double_ ? *reinterpret_cast<const double*>(at) : *reinterpret_cast<const float*>(at);
  }

  std::int64_t samples_in(std::int64_t chunk) const {
    const std::int64_t last = first_block(chunk) + blocks_in(chunk) - 1;
    return (blocks_in(chunk) - 1) * block_samples + list_.samples(last);
  }

  // Products are exact to float32 where the mean square of what is multiplied is a normal number.
  void check_underflow(std::int64_t chunk) const {
    const auto n = static_cast<double>(samples_in(chunk));
    std::vector<std::pair<std::size_t, std::int64_t>> panels;  // of what may be zero throughout
    for (std::size_t m = 0; m < models_.size(); ++m) {
      const ModelPart& part = models_[m];
      if (part.view.dtype == DType::float16) continue;  // its least numbers have normal squares
      for (std::int64_t f = 0; f < part.features; ++f) {
        if (part.square[f] >= n * std::numeric_limits<float>::min()) continue;
        if (part.square[f] > 0 || part.sum[f] != 0) throw Underflow();
        const std::pair at(m, f / panel_width * panel_width);
        if (panels.empty() || panels.back() != at) panels.push_back(at);
      }
    }
    // Sums of zero may be of what cancels.
    std::atomic<bool> found{false};
    parallel_for(panels.size(), [&](std::size_t p) {
      const auto [m, first] = panels[p];
      const ModelPart& part = models_[m];
      std::uint32_t any[panel_width] = {};
      for (std::int64_t b = 0; b < blocks_in(chunk) && !found; ++b) {
        const std::byte* const at = panel(part, b, first);
        const std::int64_t count = list_.samples(first_block(chunk) + b) * panel_width;
        for (std::int64_t k = 0; k < count; k += panel_width) {
          std::uint32_t row[panel_width];
          std::memcpy(row, at + static_cast<std::size_t>(k) * sizeof(float), sizeof row);
          for (std::ptrdiff_t i = 0; i < panel_width; ++i) any[i] |= row[i];
        }
      }
      for (std::int64_t f = first; f < std::min(part.features, first + panel_width); ++f) {
        const bool zero = part.square[f] == 0 && part.sum[f] == 0;
        if (zero && (any[f - first] & 0x7fffffffu) != 0) found = true;
      }
    });
    if (found) throw Underflow();
  }

  // Adds what is known of the chunk without its products: afterwards the course is that of after
  // it. Leaves the differences of the means.
  Weights advance(std::int64_t chunk, Course& course) {
    Vectors& vectors = course.vectors;
    const auto m = static_cast<double>(samples_in(chunk));
    const auto n = static_cast<double>(vectors.count);
    const double weight = n / (n + m) * m;
    for (std::size_t i = 0; i < models_.size(); ++i) {
      ModelPart& part = models_[i];
      double largest = 0;
      bool varies = false;
      for (std::int64_t f = 0; f < part.features; ++f) {
        double& mean = vectors.means[i][f];
        double& square = course.squares[i][f];
        const double delta = rounded(vectors.shifts[i][f]) + part.sum[f] / m - mean;
        square += std::max(0.0, part.square[f] - part.sum[f] / m * part.sum[f]);
        square += weight * delta * delta;
        check_total(square, static_cast<int>(i), f);
        part.delta[f] = delta;
        mean += m / (n + m) * delta;
        largest = std::max(largest, square);
        varies |= part.sum[f] != 0 || part.square[f] != 0 || (n > 0 && delta != 0);
      }
      const bool last = chunk + 1 == chunks();
      if (last && varies && largest < (n + m) * std::numeric_limits<double>::min()) {
        throw std::invalid_argument(
            format_message("features of model ", i,
                           " are too small: their squares underflow float64; scale them up"));
      }
    }
    vectors.count += samples_in(chunk);
    return {m, weight};
  }

  void add_chunk(std::int64_t chunk, Weights weights) {
    const auto [m, weight] = weights;
    if (slices_ == 1) {
      parallel_for(tiles_.size(), [&, m = m, weight = weight](std::size_t t) {
        const std::size_t slot = take_slot();
        double* const acc = tile_memory_ + slot;
        multiply(tiles_[t], chunk, 0, blocks_in(chunk), acc);
        flush(tiles_[t], acc, m, weight);
        return_slot(slot);
      });
    } else {
      parallel_for(tiles_.size() * slices_, [&](std::size_t task) {
        const std::size_t t = task / slices_;
        const auto s = static_cast<std::int64_t>(task % slices_);
        const auto slices = static_cast<std::int64_t>(slices_);
        multiply(tiles_[t], chunk, blocks_in(chunk) * s / slices,
                 blocks_in(chunk) * (s + 1) / slices, slice(t, static_cast<std::size_t>(s)));
      });
      parallel_for(tiles_.size(), [&, m = m, weight = weight](std::size_t t) {
        double* const acc = slice(t, 0);
        for (std::size_t s = 1; s < slices_; ++s) {
          const double* const more = slice(t, s);
          for (std::size_t i = 0; i < tiles_[t].size(); ++i) acc[i] += more[i];
        }
        flush(tiles_[t], acc, m, weight);
      });
    }
  }

  double* slice(std::size_t tile, std::size_t s) const {
    return tile_memory_ + s * slice_doubles_ + tile_at_[tile];
  }

  std::size_t take_slot() {
    // Waits only if the thread count was raised meanwhile.
    std::unique_lock lock(slots_mutex_);
    slot_returned_.wait(lock, [this] { return !free_slots_.empty(); });
    const std::size_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }

  void return_slot(std::size_t slot) {
    {
      std::lock_guard lock(slots_mutex_);
      free_slots_.push_back(slot);
    }
    slot_returned_.notify_one();
  }

  // acc (tile.rows, tile.columns) = product of the shifted samples of sub-blocks [from, to).
  void multiply(const Tile& tile, std::int64_t chunk, std::int64_t from, std::int64_t to,
                double* acc) const {
    std::fill_n(acc, tile.size(), 0.0);
    const ModelPart& row = models_[tile.block->row];
    const ModelPart& column = models_[tile.block->column];
    PanelProduct product{};
    product.a_features = tile.columns;
    product.b_features = tile.rows;
    product.a_panel_stride = product.b_panel_stride = panel_stride;
    product.acc = acc;
    product.row_stride = tile.columns;
    product.upper = tile.upper;
    for (std::int64_t b = from; b < to; ++b) {
      product.samples = list_.samples(first_block(chunk) + b);
      product.a = panel(column, b, tile.column);
      product.b = panel(row, b, tile.row);
      (double_ ? kernels_.product_double : kernels_.product_float)(product);
    }
  }

  const std::byte* panel(const ModelPart& part, std::int64_t block, std::int64_t feature) const {
    return part.packed + static_cast<std::size_t>(block) * part.block_bytes +
           static_cast<std::size_t>(feature / panel_width * panel_stride) * item();
  }

  void flush(const Tile& tile, const double* acc, double m, double weight) const {
    const ModelPart& row = models_[tile.block->row];
    const ModelPart& column = models_[tile.block->column];
    const std::int64_t stride = tile.block->columns;
    const std::int64_t rows = std::min(tile.rows, tile.block->rows - tile.row);
    const std::int64_t columns = std::min(tile.columns, tile.block->columns - tile.column);
    for (std::int64_t j = 0; j < rows; ++j) {
      const std::int64_t skip = tile.upper ? j : 0;
      const std::int64_t r = tile.row + j, c = tile.column + skip;
      kernels_.flush_row(columns - skip, tile.block->m2.data() + r * stride + c,
                         acc + j * tile.columns + skip, row.sum[r] / m, column.sum.data() + c,
                         weight * row.delta[r], column.delta.data() + c);
    }
  }

  Moments& moments_;
  SampleList list_;
  bool double_;  // compute type: float64 if any model's features are, else float32
  const Kernels& kernels_;
  std::vector<Tile> tiles_;
  std::vector<std::size_t> tile_at_;  // doubles before each tile within a slice
  std::size_t slices_ = 1, slice_doubles_ = 0;
  std::vector<ModelPart> models_;
  std::size_t input_bytes_ = 0, packed_bytes_ = 0, sum_bytes_ = 0, tile_bytes_ = 0;
  std::int64_t chunk_blocks_ = 1;
  double* tile_memory_ = nullptr;
  std::mutex slots_mutex_;
  std::condition_variable slot_returned_;
  std::vector<std::size_t> free_slots_;
};

}  // namespace ccamerge
