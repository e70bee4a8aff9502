#include "common/block_table.hpp"

#include <algorithm>

#include "common/check.hpp"

namespace ccamerge {

BlockTable::BlockTable(std::vector<std::int64_t> dims, Pairs pairs, int reference)
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
  for (int i = 0; i < models(); ++i) blocks_.emplace_back(i, i);
  for (int i = 0; i < models(); ++i) {
    if (pairs_ == Pairs::reference && i != reference_) blocks_.emplace_back(reference_, i);
    for (int j = i + 1; pairs_ == Pairs::all && j < models(); ++j) blocks_.emplace_back(i, j);
  }
}

int BlockTable::check_model(int model) const {
  if (model < 0 || model >= models()) {
    throw std::invalid_argument(
        format_message("model index must be from 0 to ", models() - 1, ", got ", model));
  }
  return model;
}

std::size_t BlockTable::find(int row, int column) const {
  const auto it = std::find(blocks_.begin(), blocks_.end(), std::pair(row, column));
  return static_cast<std::size_t>(it - blocks_.begin());
}

bool BlockTable::has(int row, int column) const {
  return std::min(find(row, column), find(column, row)) < blocks_.size();
}

BlockTable::Place BlockTable::place(int row, int column) const {
  const std::size_t direct = find(check_model(row), check_model(column));
  if (direct < blocks_.size()) return {direct, false};
  const std::size_t other = find(column, row);
  if (other == blocks_.size()) {
    throw std::invalid_argument(
        format_message("the block of models ", row, " and ", column,
                       " was not collected; create the moments with ",
                       pairs_ == Pairs::none ? "pairs=\"reference\" or \"all\"" : "pairs=\"all\""));
  }
  return {other, true};
}

void BlockTable::check_same(const BlockTable& other) const {
  if (dims_ != other.dims_ || pairs_ != other.pairs_ ||
      (pairs_ == Pairs::reference && reference_ != other.reference_)) {
    throw std::invalid_argument("other must have the same dims, pairs and reference");
  }
}

BlockTable BlockTable::subset(const std::vector<int>& models, Pairs pairs, int reference,
                              std::vector<Place>* places) const {
  std::vector<std::int64_t> dims;
  for (const int model : models) dims.push_back(dim(check_model(model)));
  BlockTable result(std::move(dims), pairs, reference);
  for (const auto& [r, c] : result.blocks_) {
    const int row = models[static_cast<std::size_t>(r)],
              column = models[static_cast<std::size_t>(c)];
    if (row == column && r != c) {
      throw std::invalid_argument(format_message("models must not repeat, got ", row, " twice"));
    }
    places->push_back(place(row, column));
  }
  return result;
}

}  // namespace ccamerge
