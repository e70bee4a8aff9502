// Streamed moments of N models' features: count, means and centred second moments, in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "common/block_table.hpp"
#include "common/call_mutex.hpp"
#include "common/scratch.hpp"
#include "common/view.hpp"

namespace ccamerge {

// Second moment of models row and column: (rows, columns) row-major, sum over samples of
// (x_row - mean_row) (x_column - mean_column). Where row == column only the upper triangle counts.
struct Block {
  int row, column;
  std::int64_t rows, columns;
  Totals m2;
};

class Moments {
 public:
  // dims: features of each model, all >= 1. Throws std::invalid_argument.
  Moments(std::vector<std::int64_t> dims, Pairs pairs, int reference);
  explicit Moments(BlockTable table);
  Moments(const Moments& other);  // locks other
  Moments& operator=(const Moments&) = delete;

  const BlockTable& table() const { return table_; }

  // Chan, Golub & LeVeque (1983): afterwards as if all of other's samples had been seen here too.
  // Throws std::invalid_argument, and changes nothing, if totals would overflow.
  void merge(const Moments& other);

  // Throws std::invalid_argument if a needed block was not collected or an index is out of range.
  Moments subset(const std::vector<int>& models, Pairs pairs, int reference) const;

  // Readers lock; the arrays are copied out.
  std::int64_t count() const;
  std::vector<double> mean(int model) const;                // (d,)
  void covariance(int row, int column, double* out) const;  // (d_row, d_column) row-major

  // All of it at one moment, between two updates. m2[b] (rows, columns) row-major gets the b-th
  // block of the table, not divided. Returns what does not need so much room.
  Vectors read(const std::vector<double*>& m2) const;

  // Sets everything, for loading: m2 in the table's order.
  void restore(Vectors vectors, const std::vector<const double*>& m2);

 private:
  friend class Updater;
  friend class Undertaking;

  // No lock.
  void copy_block(BlockTable::Place place, double divisor, double* out) const;

  BlockTable table_;
  mutable CallMutex mutex_;
  std::int64_t count_ = 0;
  std::vector<std::vector<double>> means_;
  // Subtracted from samples before they are multiplied in float32: any value near the mean will do.
  std::vector<std::vector<double>> shifts_;
  std::vector<Block> blocks_;
};

// Throws std::invalid_argument if a feature's centred sum of squares is beyond what is kept. (Sums
// of products are no larger.)
void check_total(double square, int model, std::int64_t feature);

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
