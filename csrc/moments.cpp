#include "moments.hpp"

#include <algorithm>

#include "check.hpp"
#include "parallel.hpp"

namespace ccamerge {

Moments::Moments(std::vector<std::int64_t> dims, Pairs pairs, int reference)
    : dims_(std::move(dims)), pairs_(pairs), reference_(reference) {
  if (dims_.empty()) throw std::invalid_argument("dims must name at least one model, got none");
  for (std::size_t i = 0; i < dims_.size(); ++i) {
    if (dims_[i] < 1 || dims_[i] > 1 << 20) {
      throw std::invalid_argument(
          format_message("dims must be from 1 to 1048576, got ", dims_[i], " for model ", i));
    }
  }
  if (reference < 0 || reference >= models()) {
    throw std::invalid_argument(
        format_message("reference must be from 0 to ", models() - 1, ", got ", reference));
  }
  for (const std::int64_t d : dims_) {
    means_.emplace_back(static_cast<std::size_t>(d), 0.0);
    shifts_.emplace_back(static_cast<std::size_t>(d), 0.0);
  }
  auto add = [this](int row, int column) {
    const std::int64_t rows = dims_[row], columns = dims_[column];
    blocks_.push_back({row, column, rows, columns,
                       std::vector<double>(static_cast<std::size_t>(rows * columns))});
  };
  for (int i = 0; i < models(); ++i) add(i, i);
  for (int i = 0; i < models(); ++i) {
    if (pairs_ == Pairs::reference && i != reference_) add(reference_, i);
    for (int j = i + 1; pairs_ == Pairs::all && j < models(); ++j) add(i, j);
  }
}

Moments::Moments(const Moments& other)
    : dims_(other.dims_), pairs_(other.pairs_), reference_(other.reference_) {
  std::lock_guard lock(other.mutex_);
  count_ = other.count_;
  means_ = other.means_;
  shifts_ = other.shifts_;
  blocks_ = other.blocks_;
}

void Moments::merge(const Moments& other) {
  if (this == &other) return merge(Moments(other));
  if (dims_ != other.dims_ || pairs_ != other.pairs_ ||
      (pairs_ == Pairs::reference && reference_ != other.reference_)) {
    throw std::invalid_argument("other must have the same dims, pairs and reference");
  }
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
  std::vector<std::int64_t> dims;
  for (const int model : models) dims.push_back(dims_[check_model(model)]);
  Moments result(std::move(dims), pairs, reference);
  std::lock_guard lock(mutex_);
  for (Block& block : result.blocks_) {
    const int row = models[block.row], column = models[block.column];
    if (row == column && block.row != block.column) {
      throw std::invalid_argument(format_message("models must not repeat, got ", row, " twice"));
    }
    copy_block(row, column, 1.0, block.m2.data());
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

int Moments::check_model(int model) const {
  if (model < 0 || model >= models()) {
    throw std::invalid_argument(
        format_message("model index must be from 0 to ", models() - 1, ", got ", model));
  }
  return model;
}

std::vector<double> Moments::mean(int model) const {
  check_model(model);
  std::lock_guard lock(mutex_);
  if (count_ == 0) throw std::invalid_argument("no samples yet: call update() first");
  return means_[model];
}

std::vector<double> Moments::shift(int model) const {
  check_model(model);
  std::lock_guard lock(mutex_);
  return shifts_[model];
}

const Block* Moments::find(int row, int column) const {
  for (const Block& block : blocks_) {
    if (block.row == row && block.column == column) return &block;
  }
  return nullptr;
}

bool Moments::has(int row, int column) const { return find(row, column) || find(column, row); }

void Moments::copy_block(int row, int column, double divisor, double* out) const {
  const Block* const direct = find(check_model(row), check_model(column));
  const Block* const block = direct ? direct : find(column, row);
  if (!block) {
    throw std::invalid_argument(
        format_message("the block of models ", row, " and ", column,
                       " was not collected; create the moments with ",
                       pairs_ == Pairs::none ? "pairs=\"reference\" or \"all\"" : "pairs=\"all\""));
  }
  const double* const m2 = block->m2.data();
  for (std::int64_t j = 0; j < block->rows; ++j) {
    const std::int64_t first = row == column ? j : 0;
    for (std::int64_t i = first; i < block->columns; ++i) {
      const double value = m2[j * block->columns + i] / divisor;
      if (direct) out[j * block->columns + i] = value;
      if (!direct || row == column) out[i * block->rows + j] = value;
    }
  }
}

void Moments::second_moment(int row, int column, double* out) const {
  std::lock_guard lock(mutex_);
  copy_block(row, column, 1.0, out);
}

void Moments::covariance(int row, int column, double* out) const {
  std::lock_guard lock(mutex_);
  if (count_ == 0) throw std::invalid_argument("no samples yet: call update() first");
  copy_block(row, column, static_cast<double>(count_), out);
}

std::vector<std::pair<int, int>> Moments::block_pairs() const {
  std::vector<std::pair<int, int>> pairs;
  for (const Block& block : blocks_) pairs.emplace_back(block.row, block.column);
  return pairs;
}

void Moments::restore(std::int64_t count, std::vector<std::vector<double>> means,
                      std::vector<std::vector<double>> shifts,
                      const std::vector<const double*>& m2) {
  std::lock_guard lock(mutex_);
  count_ = count;
  means_ = std::move(means);
  shifts_ = std::move(shifts);
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    std::copy(m2[b], m2[b] + blocks_[b].m2.size(), blocks_[b].m2.data());
  }
}

}  // namespace ccamerge
