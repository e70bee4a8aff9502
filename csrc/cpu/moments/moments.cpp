#include "cpu/moments/moments.hpp"

#include <algorithm>
#include <limits>
#include <mutex>

#include "common/check.hpp"

namespace ccamerge {

Moments::Moments(std::vector<std::int64_t> dims, Pairs pairs, int reference)
    : Moments(BlockTable(std::move(dims), pairs, reference)) {}

Moments::Moments(BlockTable table) : table_(std::move(table)) {
  for (const std::int64_t d : table_.dims()) {
    means_.emplace_back(static_cast<std::size_t>(d), 0.0);
    shifts_.emplace_back(static_cast<std::size_t>(d), 0.0);
  }
  for (const auto& [row, column] : table_.blocks()) {
    const std::int64_t rows = table_.dim(row), columns = table_.dim(column);
    blocks_.push_back(
        {row, column, rows, columns, Totals(static_cast<std::size_t>(rows * columns))});
  }
}

Moments::Moments(const Moments& other) : table_(other.table_) {
  std::lock_guard lock(other.mutex_);
  count_ = other.count_;
  means_ = other.means_;
  shifts_ = other.shifts_;
  blocks_ = other.blocks_;
}

void check_total(double square, int model, std::int64_t feature) {
  if (square <= std::numeric_limits<double>::max() / 16) return;
  throw std::invalid_argument(
      format_message("features of model ", model, " are too large: the sum of squares of feature ",
                     feature, " over all samples overflows float64; scale the features down"));
}

void Moments::merge(const Moments& other) {
  if (this == &other) return merge(Moments(other));
  table_.check_same(other.table_);
  std::scoped_lock lock(mutex_, other.mutex_);
  if (other.count_ == 0) return;
  if (count_ == 0) {
    auto means = other.means_, shifts = other.shifts_;
    auto blocks = other.blocks_;
    means_.swap(means);
    shifts_.swap(shifts);
    blocks_.swap(blocks);
    count_ = other.count_;
    return;
  }
  const auto n = static_cast<double>(count_), m = static_cast<double>(other.count_);
  auto deltas = other.means_;
  for (std::size_t i = 0; i < deltas.size(); ++i) {
    for (std::size_t f = 0; f < deltas[i].size(); ++f) deltas[i][f] -= means_[i][f];
  }
  const double weight = n / (n + m) * m;
  for (std::size_t b = 0; b < blocks_.size(); ++b) {  // before anything changes
    const Block& block = blocks_[b];
    if (block.row != block.column) continue;  // no larger than the diagonals
    const auto& delta = deltas[block.row];
    for (std::int64_t i = 0; i < block.rows; ++i) {
      const std::int64_t at = i * block.columns + i;
      const double added = other.blocks_[b].m2[at] + weight * delta[i] * delta[i];
      check_total(block.m2[at] + added, block.row, i);
    }
  }
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    Block& block = blocks_[b];
    const double* const from = other.blocks_[b].m2.data();
    const auto& rows = deltas[block.row];
    const auto& columns = deltas[block.column];
    for (std::int64_t j = 0; j < block.rows; ++j) {
      const double factor = weight * rows[j];
      double* const to = block.m2.data() + j * block.columns;
      for (std::int64_t i = 0; i < block.columns; ++i) {
        to[i] += from[j * block.columns + i] + factor * columns[i];
      }
    }
  }
  for (std::size_t i = 0; i < deltas.size(); ++i) {
    for (std::size_t f = 0; f < deltas[i].size(); ++f) means_[i][f] += m / (n + m) * deltas[i][f];
  }
  count_ += other.count_;
}

Moments Moments::subset(const std::vector<int>& models, Pairs pairs, int reference) const {
  std::vector<BlockTable::Place> places;
  Moments result(table_.subset(models, pairs, reference, &places));
  std::lock_guard lock(mutex_);
  for (std::size_t b = 0; b < places.size(); ++b) {
    copy_block(places[b], 1.0, result.blocks_[b].m2.data());
  }
  result.count_ = count_;
  for (std::size_t i = 0; i < models.size(); ++i) {
    result.means_[i] = means_[models[i]];
    result.shifts_[i] = shifts_[models[i]];
  }
  return result;
}

std::int64_t Moments::count() const {
  std::lock_guard lock(mutex_);
  return count_;
}

std::vector<double> Moments::mean(int model) const {
  table_.check_model(model);
  std::lock_guard lock(mutex_);
  if (count_ == 0) throw std::invalid_argument("no samples yet: call update() first");
  return means_[model];
}

void Moments::copy_block(BlockTable::Place place, double divisor, double* out) const {
  const Block& block = blocks_[place.index];
  const bool own = block.row == block.column;
  const double* const m2 = block.m2.data();
  for (std::int64_t j = 0; j < block.rows; ++j) {
    for (std::int64_t i = own ? j : 0; i < block.columns; ++i) {
      const double value = m2[j * block.columns + i] / divisor;
      if (!place.transposed) out[j * block.columns + i] = value;
      if (place.transposed || own) out[i * block.rows + j] = value;
    }
  }
}

void Moments::covariance(int row, int column, double* out) const {
  std::lock_guard lock(mutex_);
  if (count_ == 0) throw std::invalid_argument("no samples yet: call update() first");
  copy_block(table_.place(row, column), static_cast<double>(count_), out);
}

Vectors Moments::read(const std::vector<double*>& m2) const {
  std::lock_guard lock(mutex_);
  for (std::size_t b = 0; b < blocks_.size(); ++b) copy_block({b, false}, 1.0, m2[b]);
  return {count_, means_, shifts_};
}

void Moments::restore(Vectors vectors, const std::vector<const double*>& m2) {
  std::lock_guard lock(mutex_);
  count_ = vectors.count;
  means_ = std::move(vectors.means);
  shifts_ = std::move(vectors.shifts);
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    std::copy(m2[b], m2[b] + blocks_[b].m2.size(), blocks_[b].m2.data());
  }
}

}  // namespace ccamerge
