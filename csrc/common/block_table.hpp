// Which second moments are kept of several models' features, on the CPU and on a device alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace ccamerge {

enum class Pairs { none, reference, all };

// The blocks (row, column), each (dims[row], dims[column]): every model's own, then the crosses.
class BlockTable {
 public:
  // dims: features of each model, all >= 1. Throws std::invalid_argument.
  BlockTable(std::vector<std::int64_t> dims, Pairs pairs, int reference);

  const std::vector<std::int64_t>& dims() const { return dims_; }
  std::int64_t dim(int model) const { return dims_[static_cast<std::size_t>(model)]; }
  int models() const { return static_cast<int>(dims_.size()); }
  Pairs pairs() const { return pairs_; }
  int reference() const { return reference_; }
  const std::vector<std::pair<int, int>>& blocks() const { return blocks_; }

  int check_model(int model) const;  // throws std::invalid_argument if out of range

  // Where the block of two models is, which may be kept as its transpose. Throws
  // std::invalid_argument if it was not collected.
  struct Place {
    std::size_t index;
    bool transposed;
  };
  Place place(int row, int column) const;
  bool has(int row, int column) const;  // either order

  // Throws std::invalid_argument unless totals of `other` can be added to totals of this.
  void check_same(const BlockTable& other) const;

  // Of some of the models, in that order, and where its blocks are in this one. Throws
  // std::invalid_argument for a model out of range or named twice and for blocks not collected.
  BlockTable subset(const std::vector<int>& models, Pairs pairs, int reference,
                    std::vector<Place>* places) const;

 private:
  std::size_t find(int row, int column) const;  // exact order; blocks().size() if not collected

  std::vector<std::int64_t> dims_;
  Pairs pairs_;
  int reference_;
  std::vector<std::pair<int, int>> blocks_;
};

// What moments are beside their blocks: samples, and of each model (d,) means and shifts.
struct Vectors {
  std::int64_t count = 0;
  std::vector<std::vector<double>> means, shifts;
};

}  // namespace ccamerge
