// Which matrix products an update needs, and with what sizes, as few and as large as can be.
#pragma once

#include <cstdint>
#include <vector>

#include "common/block_table.hpp"

namespace ccamerge::cuda {

// All models' features side by side on one axis, each model's filled up so that operands' and
// products' rows are aligned.
struct FeatureAxis {
  explicit FeatureAxis(const BlockTable& table);
  std::vector<std::int64_t> start;  // of each model
  std::int64_t width = 0;

  static std::int64_t filled(std::int64_t features) {
    constexpr std::int64_t aligned = 8;
    return (features + aligned - 1) / aligned * aligned;
  }
};

// Products of features [row, row + rows) with [column, column + columns) of the axis, in each chunk
// of samples; or the same of `models` models, of equally many features, each `step` further on.
struct ProductJob {
  std::int64_t row, column, rows, columns;
  std::int64_t models = 1, step = 0;

  std::int64_t size() const { return models * rows * columns; }  // elements for each chunk
};

// A part of a block of totals, from (row, column) on, that a job's products are for.
struct ProductPart {
  std::size_t block;
  std::int64_t row, column, height, width;
  std::int64_t offset;  // of its first element among the job's of a chunk
};

// Jobs whose parts make up all blocks: of a model's own the upper triangle and, for the sake of
// larger products, some of the lower. No job has more than `most` elements for each chunk if it has
// more than kLeastColumns columns.
std::vector<ProductJob> product_jobs(const BlockTable& table, const FeatureAxis& axis,
                                     std::int64_t most);
std::vector<ProductPart> parts_of(const ProductJob& job, const BlockTable& table,
                                  const FeatureAxis& axis);

inline constexpr std::int64_t kLeastColumns = 1024;

// Tiles of 128 by 128 products, in which the libraries share work out, of all jobs in each chunk.
std::int64_t tiles_of(const std::vector<ProductJob>& jobs);

}  // namespace ccamerge::cuda
