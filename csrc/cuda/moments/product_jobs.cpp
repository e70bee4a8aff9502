#include "cuda/moments/product_jobs.hpp"

#include <algorithm>

#include "cuda/runtime.hpp"

namespace ccamerge::cuda {
namespace {

// A model's own block is multiplied in bands of rows, each from its diagonal on.
constexpr std::int64_t kLeastBand = 256, kMostBand = 1024;
// Up to so many features, models' own blocks are too small to fill a device one by one.
constexpr std::int64_t kFew = 512;

std::int64_t band_of(std::int64_t features) {
  return std::clamp(ceil_div<std::int64_t>(features / 4, 128) * 128, kLeastBand, kMostBand);
}

// Adds jobs for a rectangle, in pieces of columns that keep within `most`.
void add_pieces(const ProductJob& whole, std::int64_t most, std::vector<ProductJob>* jobs) {
  const std::int64_t columns =
      std::max(kLeastColumns, most / (whole.rows * whole.models) / kLeastColumns * kLeastColumns);
  for (std::int64_t at = 0; at < whole.columns; at += columns) {
    ProductJob piece = whole;
    piece.column += at;
    piece.columns = std::min(columns, whole.columns - at);
    jobs->push_back(piece);
  }
}

void add_own(const BlockTable& table, const FeatureAxis& axis, std::int64_t most,
             std::vector<ProductJob>* jobs) {
  const auto& dims = table.dims();
  const bool equal = std::all_of(dims.begin(), dims.end(),
                                 [&](std::int64_t d) { return d == dims.front() && d <= kFew; });
  for (int m = 0; m < (equal ? 1 : table.models()); ++m) {
    const std::int64_t start = axis.start[static_cast<std::size_t>(m)];
    const std::int64_t d = table.dim(m), filled = FeatureAxis::filled(d), band = band_of(d);
    for (std::int64_t r = 0; r < d; r += band) {
      ProductJob job{start + r, start + r, std::min(band, d - r), filled - r};
      if (equal) {
        job.models = table.models();
        job.step = filled;
      }
      add_pieces(job, most, jobs);
    }
  }
}

// The models that a model's rows are multiplied with, itself left out, ascending.
std::vector<int> partners(const BlockTable& table, int row) {
  std::vector<int> found;
  for (const auto& [r, c] : table.blocks()) {
    if (r == row && c != row) found.push_back(c);
  }
  std::sort(found.begin(), found.end());
  return found;
}

void add_crosses(const BlockTable& table, const FeatureAxis& axis, std::int64_t most,
                 std::vector<ProductJob>* jobs) {
  for (int m = 0; m < table.models(); ++m) {
    const std::vector<int> others = partners(table, m);
    for (std::size_t first = 0, last = 0; first < others.size(); first = last) {
      for (last = first + 1; last < others.size() && others[last] == others[last - 1] + 1;) ++last;
      const auto from = static_cast<std::size_t>(others[first]);
      const auto to = static_cast<std::size_t>(others[last - 1]);
      const std::int64_t column = axis.start[from];
      const std::int64_t end = axis.start[to] + FeatureAxis::filled(table.dims()[to]);
      for (std::int64_t r = 0; r < table.dim(m); r += kMostBand) {
        const std::int64_t row = axis.start[static_cast<std::size_t>(m)] + r;
        add_pieces({row, column, std::min(kMostBand, table.dim(m) - r), end - column}, most, jobs);
      }
    }
  }
}

// The model that a place on the axis belongs to.
int model_at(const FeatureAxis& axis, std::int64_t place) {
  const auto after = std::upper_bound(axis.start.begin(), axis.start.end(), place);
  return static_cast<int>(after - axis.start.begin()) - 1;
}

}  // namespace

FeatureAxis::FeatureAxis(const BlockTable& table) {
  for (const std::int64_t d : table.dims()) {
    start.push_back(width);
    width += filled(d);
  }
}

std::vector<ProductJob> product_jobs(const BlockTable& table, const FeatureAxis& axis,
                                     std::int64_t most) {
  std::vector<ProductJob> jobs;
  add_own(table, axis, most, &jobs);
  add_crosses(table, axis, most, &jobs);
  return jobs;
}

std::vector<ProductPart> parts_of(const ProductJob& job, const BlockTable& table,
                                  const FeatureAxis& axis) {
  std::vector<ProductPart> parts;
  for (std::int64_t k = 0; k < job.models; ++k) {
    const std::int64_t row = job.row + k * job.step, column = job.column + k * job.step;
    const int r = model_at(axis, row);
    const std::int64_t r0 = row - axis.start[static_cast<std::size_t>(r)];
    for (int c = model_at(axis, column); c < table.models(); ++c) {
      const std::int64_t start = axis.start[static_cast<std::size_t>(c)];
      const std::int64_t from = std::max(column, start);
      const std::int64_t to = std::min(column + job.columns, start + table.dim(c));
      if (start >= column + job.columns) break;
      if (to <= from) continue;
      parts.push_back({table.place(r, c).index, r0, from - start, job.rows, to - from,
                       k * job.rows * job.columns + from - column});
    }
  }
  return parts;
}

std::int64_t tiles_of(const std::vector<ProductJob>& jobs) {
  constexpr std::int64_t side = 128;
  std::int64_t tiles = 0;
  for (const ProductJob& job : jobs) {
    tiles += job.models * ceil_div(job.rows, side) * ceil_div(job.columns, side);
  }
  return tiles;
}

}  // namespace ccamerge::cuda
