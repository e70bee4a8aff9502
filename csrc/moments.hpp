// Streamed moments of N models' features: count, means and centred second moments, in float64.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "view.hpp"

namespace ccamerge {

enum class Pairs { none, reference, all };

// Second moment of models row and column: (rows, columns) row-major, sum over samples of
// (x_row - mean_row) (x_column - mean_column). Where row == column only the upper triangle counts.
struct Block {
  int row, column;
  std::int64_t rows, columns;
  std::vector<double> m2;
};

class Moments {
 public:
  // dims: features of each model, all >= 1. Throws std::invalid_argument.
  Moments(std::vector<std::int64_t> dims, Pairs pairs, int reference);
  Moments(const Moments& other);  // locks other
  Moments& operator=(const Moments&) = delete;

  const std::vector<std::int64_t>& dims() const { return dims_; }
  int models() const { return static_cast<int>(dims_.size()); }
  Pairs pairs() const { return pairs_; }
  int reference() const { return reference_; }

  // Chan, Golub & LeVeque (1983): afterwards as if all of other's samples had been seen here too.
  void merge(const Moments& other);

  // Throws std::invalid_argument if a needed block was not collected or an index is out of range.
  Moments subset(const std::vector<int>& models, Pairs pairs, int reference) const;

  // Readers lock; the arrays are copied out.
  std::int64_t count() const;
  std::vector<double> mean(int model) const;                   // (d,)
  std::vector<double> shift(int model) const;                  // (d,)
  bool has(int row, int column) const;                         // either order
  void covariance(int row, int column, double* out) const;     // (d_row, d_column) row-major
  void second_moment(int row, int column, double* out) const;  // the same, not divided
  std::vector<std::pair<int, int>> block_pairs() const;

  // Sets everything, for loading: means and shifts (models of (d,)), m2 in block_pairs() order.
  void restore(std::int64_t count, std::vector<std::vector<double>> means,
               std::vector<std::vector<double>> shifts, const std::vector<const double*>& m2);

 private:
  friend class Updater;
  friend class Rollback;

  const Block* find(int row, int column) const;  // exact order; nullptr if not collected
  void copy_block(int row, int column, double divisor, double* out) const;  // no lock
  int check_model(int model) const;

  std::vector<std::int64_t> dims_;
  Pairs pairs_;
  int reference_;
  mutable std::mutex mutex_;
  std::int64_t count_ = 0;
  std::vector<std::vector<double>> means_;
  // Subtracted from samples before they are multiplied in float32: any value near the mean will do.
  std::vector<std::vector<double>> shifts_;
  std::vector<Block> blocks_;
};

// One update of one accumulator: a view for each of its models, with equal sample shapes.
struct Update {
  Moments* moments;
  std::vector<FeatureView> features;
  const std::uint8_t* mask = nullptr;  // (samples,) nonzero for selected, or nullptr for all
};

// Runs all updates, in order. If anything is thrown, every accumulator is as it was, bit for bit.
// Throws std::invalid_argument naming the model for non-finite input, Interrupted.
void update(const std::vector<Update>& updates);

}  // namespace ccamerge
