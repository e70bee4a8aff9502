// Streamed moments of N models' features on a device: the same totals as the CPU's (see
// cpu/moments/moments.hpp). Updates are asynchronous on the caller's stream; whatever returns
// values to the host waits for that stream. An object must not be used on two streams at once.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/block_table.hpp"
#include "common/call_mutex.hpp"
#include "common/view.hpp"
#include "cuda/memory.hpp"
#include "cuda/moments/state.hpp"
#include "cuda/moments/totals.hpp"
#include "cuda/runtime.hpp"

namespace ccamerge::cuda {

// What an accumulator keeps in device memory.
struct Storage {
  State* state = nullptr;
  std::vector<double*> means, shifts;  // (d,) of each model
  std::vector<Total> totals;           // in the table's order
};

class Moments {
 public:
  // Memory for totals and means is taken from `allocate` once, and cleared on the stream.
  Moments(BlockTable table, const Allocate& allocate, int device, cudaStream_t stream);

  const BlockTable& table() const { return table_; }
  int device() const { return device_; }

  // All of these wait and check first, as check_all does.
  std::int64_t count(cudaStream_t stream);
  std::vector<double> mean(int model, cudaStream_t stream);
  void covariance(int row, int column, double* out, const Allocate& allocate, cudaStream_t stream);
  // All of it at one moment, into host memory: see the CPU's.
  Vectors read(const std::vector<double*>& m2, const Allocate& allocate, cudaStream_t stream);
  void merge(Moments& other, const Allocate& allocate, cudaStream_t stream);
  std::unique_ptr<Moments> subset(const std::vector<int>& models, Pairs pairs, int reference,
                                  const Allocate& allocate, cudaStream_t stream);

  // Into device memory, without waiting: (d_row, d_column) row-major, (d,).
  void covariance_into(int row, int column, double* out, cudaStream_t stream);
  void mean_into(int model, double* out, cudaStream_t stream);

  // Sets everything, from host memory: m2 in the table's order.
  void restore(const Vectors& vectors, const std::vector<const double*>& m2, cudaStream_t stream);

  // For updates: holds off other calls while `run(storage, number)` queues one. The label goes into
  // the message of a bad element.
  template <class Run>
  void updating(const std::string& label, cudaStream_t stream, Run&& run) {
    std::lock_guard lock(mutex_);
    const DeviceGuard guard(device_);
    if (labels_.size() >= kMostLabels) forget_labels(stream);
    labels_.push_back(label);
    run(static_cast<const Storage&>(storage_), static_cast<long long>(labels_.size()));
  }

 private:
  friend std::vector<std::int64_t> check_all(const std::vector<Moments*>& moments,
                                             const Allocate& allocate, cudaStream_t stream);

  std::size_t features(int model) const { return static_cast<std::size_t>(table_.dim(model)); }
  std::vector<double> vector_of(const double* from, int model, cudaStream_t stream);
  // No lock, as all that follow.
  void copy_out(BlockTable::Place place, bool divided, double* out, const Allocate& allocate,
                cudaStream_t stream);
  State checked(cudaStream_t stream);
  void accept(const State& state, cudaStream_t stream);
  void forget_labels(cudaStream_t stream);  // waits, and keeps that of an update that has failed

  static constexpr std::size_t kMostLabels = 4096;

  BlockTable table_;
  int device_;
  Buffer memory_;
  Storage storage_;
  std::vector<std::string> labels_;  // of updates since the last check
  CallMutex mutex_;
};

// Waits once for all, which are on one device; returns the counts. Throws std::invalid_argument for
// the first that met an element that was not finite, or too large, naming it and the label of the
// update that it came with. Those moments are then as they were before that update, and usable; the
// ones after them are left to be checked.
std::vector<std::int64_t> check_all(const std::vector<Moments*>& moments, const Allocate& allocate,
                                    cudaStream_t stream);

// One update of one accumulator: a view of device memory for each of its models, with equal sample
// shapes.
struct Update {
  Moments* moments;
  std::vector<FeatureView> features;
  const std::uint8_t* mask = nullptr;  // (samples,) nonzero for selected, or nullptr for all
};

// Bounds on an update's workspace, unless the least that it can work with is more. Products are
// added while the cache still holds them.
struct Limits {
  std::size_t operand_bytes = std::size_t{384} << 20;
  std::size_t product_bytes = std::size_t{32} << 20;
};

// Runs all updates, in order, on the stream, without waiting for it. Workspace comes from
// `allocate` and is given back when the call returns; unless told so, its operands take at most a
// 64th of the device's memory, between 256 MiB and 2 GiB. Throws std::invalid_argument for what can
// be seen without looking at values. An update with an element that is not finite changes nothing,
// nor does any later one of the same accumulator until check().
void update(const std::vector<Update>& updates, const std::string& label, const Allocate& allocate,
            cudaStream_t stream, const std::optional<Limits>& limits = {});

}  // namespace ccamerge::cuda
