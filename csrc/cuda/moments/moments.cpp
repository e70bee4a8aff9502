#include "cuda/moments/moments.hpp"

#include <algorithm>
#include <mutex>
#include <set>

#include "common/check.hpp"

namespace ccamerge::cuda {

Moments::Moments(BlockTable table, const Allocate& allocate, int device, cudaStream_t stream)
    : table_(std::move(table)), device_(device) {
  const DeviceGuard guard(device_);
  const auto models = static_cast<std::size_t>(table_.models());
  storage_.means.resize(models);
  storage_.shifts.resize(models);
  for (const auto& [row, column] : table_.blocks()) {
    storage_.totals.push_back({nullptr, table_.dim(row), table_.dim(column), row == column});
  }
  const Arena arena(allocate, [this](auto&& part) {
    part(1, storage_.state);
    for (int i = 0; i < table_.models(); ++i) {
      part(features(i), storage_.means[static_cast<std::size_t>(i)]);
      part(features(i), storage_.shifts[static_cast<std::size_t>(i)]);
    }
    for (Total& total : storage_.totals) {
      part(static_cast<std::size_t>(total.rows * total.columns), total.data);
    }
  });
  memory_ = arena.memory();
  cuda::check(cudaMemsetAsync(memory_.data, 0, arena.bytes(), stream), "cudaMemsetAsync");
}

State Moments::checked(cudaStream_t stream) {
  State state;
  to_host(&state, storage_.state, sizeof(state), stream);
  accept(state, stream);
  return state;
}

// Throws if an update has failed, and goes on from before it.
void Moments::accept(const State& state, cudaStream_t stream) {
  std::vector<std::string> labels;
  labels.swap(labels_);
  if (!state.failed) return;
  const std::string label = labels.at(static_cast<std::size_t>(state.failed - 1));
  const auto bits = [key = ~state.bad](int shift, int count) {
    return static_cast<std::int64_t>(key >> shift & ((1ull << count) - 1));
  };
  const State mended{state.count, 0, 0, 0, 0};
  to_device(storage_.state, &mended, sizeof(mended), stream);
  const std::int64_t sample = bits(kFeatureBits, kSampleBits), feature = bits(0, kFeatureBits);
  const std::string what =
      sample == kTooSmall
          ? format_message(" are too small: squares of feature ", feature,
                           " underflow; scale the features up, or pass them as float64")
          : format_message(" are not finite, or too large to be squared: first at sample ", sample,
                           ", feature ", feature, "; mask such samples out or mend the model");
  throw std::invalid_argument(format_message(label.empty() ? "" : label + ": ",
                                             "features of model ",
                                             bits(kFeatureBits + kSampleBits, kModelBits), what,
                                             ". This update and later ones were not added"));
}

void Moments::forget_labels(cudaStream_t stream) {
  State state;
  to_host(&state, storage_.state, sizeof(state), stream);
  std::vector<std::string> kept;
  if (state.failed) {
    kept.push_back(std::move(labels_.at(static_cast<std::size_t>(state.failed - 1))));
    state.failed = 1;
    to_device(storage_.state, &state, sizeof(state), stream);
  }
  labels_.swap(kept);
}

std::vector<std::int64_t> check_all(const std::vector<Moments*>& moments, const Allocate& allocate,
                                    cudaStream_t stream) {
  if (moments.empty()) return {};
  const DeviceGuard guard(moments.front()->device());
  std::set<Moments*> distinct(moments.begin(), moments.end());  // one order of locking for all
  std::vector<std::unique_lock<CallMutex>> locks;
  for (Moments* one : distinct) {
    if (one->device() != moments.front()->device()) {
      throw std::invalid_argument("moments to be checked together must be on one device");
    }
    locks.emplace_back(one->mutex_);
  }
  std::vector<const State*> places;
  for (const Moments* one : moments) places.push_back(one->storage_.state);
  const Buffer gathered = allocate(places.size() * sizeof(State));
  gather_states(places, gathered.as<State>(), stream);
  std::vector<State> states(places.size());
  to_host(states.data(), gathered.data, states.size() * sizeof(State), stream);
  std::vector<std::int64_t> counts;
  for (std::size_t i = 0; i < moments.size(); ++i) {
    moments[i]->accept(states[i], stream);
    counts.push_back(states[i].count);
  }
  return counts;
}

std::int64_t Moments::count(cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  const DeviceGuard guard(device_);
  return checked(stream).count;
}

std::vector<double> Moments::vector_of(const double* from, int model, cudaStream_t stream) {
  std::vector<double> out(features(model));
  to_host(out.data(), from, out.size() * sizeof(double), stream);
  return out;
}

namespace {

void demand_samples(const State& state) {
  if (state.count == 0) throw std::invalid_argument("no samples yet: call update() first");
}

}  // namespace

std::vector<double> Moments::mean(int model, cudaStream_t stream) {
  table_.check_model(model);
  std::lock_guard lock(mutex_);
  const DeviceGuard guard(device_);
  demand_samples(checked(stream));
  return vector_of(storage_.means[static_cast<std::size_t>(model)], model, stream);
}

void Moments::copy_out(BlockTable::Place place, bool divided, double* out, const Allocate& allocate,
                       cudaStream_t stream) {
  const Total& total = storage_.totals[place.index];
  const std::size_t bytes = static_cast<std::size_t>(total.rows * total.columns) * sizeof(double);
  const Buffer copy = allocate(bytes);
  cuda::read(total, place.transposed, divided, storage_.state, copy.as<double>(), stream);
  to_host(out, copy.data, bytes, stream);
}

void Moments::covariance(int row, int column, double* out, const Allocate& allocate,
                         cudaStream_t stream) {
  const auto place = table_.place(row, column);
  std::lock_guard lock(mutex_);
  const DeviceGuard guard(device_);
  demand_samples(checked(stream));
  copy_out(place, true, out, allocate, stream);
}

Vectors Moments::read(const std::vector<double*>& m2, const Allocate& allocate,
                      cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  const DeviceGuard guard(device_);
  Vectors out{checked(stream).count, {}, {}};
  for (int i = 0; i < table_.models(); ++i) {
    out.means.push_back(vector_of(storage_.means[static_cast<std::size_t>(i)], i, stream));
    out.shifts.push_back(vector_of(storage_.shifts[static_cast<std::size_t>(i)], i, stream));
  }
  for (std::size_t b = 0; b < m2.size(); ++b) copy_out({b, false}, false, m2[b], allocate, stream);
  return out;
}

void Moments::covariance_into(int row, int column, double* out, cudaStream_t stream) {
  const auto place = table_.place(row, column);
  std::lock_guard lock(mutex_);
  const DeviceGuard guard(device_);
  cuda::read(storage_.totals[place.index], place.transposed, true, storage_.state, out, stream);
}

void Moments::mean_into(int model, double* out, cudaStream_t stream) {
  table_.check_model(model);
  std::lock_guard lock(mutex_);
  const DeviceGuard guard(device_);
  cuda::check(cudaMemcpyAsync(out, storage_.means[static_cast<std::size_t>(model)],
                              features(model) * sizeof(double), cudaMemcpyDeviceToDevice, stream),
              "cudaMemcpyAsync");
}

void Moments::merge(Moments& other, const Allocate& allocate, cudaStream_t stream) {
  table_.check_same(other.table_);
  if (device_ != other.device_) {
    throw std::invalid_argument(
        format_message("other must be on CUDA device ", device_, ", is on ", other.device_));
  }
  std::unique_lock lock(mutex_, std::defer_lock), other_lock(other.mutex_, std::defer_lock);
  if (this == &other) {
    lock.lock();
  } else {
    std::lock(lock, other_lock);
  }
  const DeviceGuard guard(device_);
  State state = checked(stream);
  const State added = this == &other ? state : other.checked(stream);
  if (added.count == 0) return;
  state.before = state.count;
  state.selected = added.count;
  to_device(storage_.state, &state, sizeof(state), stream);

  std::vector<Centre> centres(storage_.means.size());
  const Arena arena(allocate, [&](auto&& part) {
    for (int i = 0; i < table_.models(); ++i) {
      centres[static_cast<std::size_t>(i)].lay_out(features(i), part);
    }
  });
  for (std::size_t m = 0; m < centres.size(); ++m) {
    centre_on(storage_.means[m], other.storage_.means[m], table_.dims()[m], centres[m], stream);
  }
  std::vector<Addend<double>> addends;
  for (std::size_t b = 0; b < storage_.totals.size(); ++b) {
    const auto& [row, column] = table_.blocks()[b];
    Addend<double>& one = addends.emplace_back();
    one.total = storage_.totals[b];
    one.rows = centres[static_cast<std::size_t>(row)];
    one.columns = centres[static_cast<std::size_t>(column)];
    one.data = other.storage_.totals[b].data;
    one.height = one.total.rows;
    one.width = one.stride = one.total.columns;
    one.parts = 1;
  }
  add(addends, storage_.state, stream);
  for (int i = 0; i < table_.models(); ++i) {
    const auto m = static_cast<std::size_t>(i);
    move_mean(centres[m], storage_.means[m], table_.dim(i), storage_.state, stream);
  }
  state.count += added.count;
  to_device(storage_.state, &state, sizeof(state), stream);
}

std::unique_ptr<Moments> Moments::subset(const std::vector<int>& models, Pairs pairs, int reference,
                                         const Allocate& allocate, cudaStream_t stream) {
  std::vector<BlockTable::Place> places;
  auto result = std::make_unique<Moments>(table_.subset(models, pairs, reference, &places),
                                          allocate, device_, stream);
  std::lock_guard lock(mutex_);
  const DeviceGuard guard(device_);
  const State state = checked(stream);
  for (std::size_t b = 0; b < places.size(); ++b) {
    cuda::read(storage_.totals[places[b].index], places[b].transposed, false, storage_.state,
               result->storage_.totals[b].data, stream);
  }
  for (std::size_t i = 0; i < models.size(); ++i) {
    const auto m = static_cast<std::size_t>(models[i]);
    const std::size_t bytes = features(models[i]) * sizeof(double);
    for (const auto& [to, from] : {std::pair{result->storage_.means[i], storage_.means[m]},
                                   std::pair{result->storage_.shifts[i], storage_.shifts[m]}}) {
      cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream),
                  "cudaMemcpyAsync");
    }
  }
  to_device(result->storage_.state, &state, sizeof(state), stream);
  return result;
}

void Moments::restore(const Vectors& vectors, const std::vector<const double*>& m2,
                      cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  const DeviceGuard guard(device_);
  labels_.clear();
  const State state{vectors.count, 0, 0, 0, 0};
  to_device(storage_.state, &state, sizeof(state), stream);
  for (int i = 0; i < table_.models(); ++i) {
    const auto m = static_cast<std::size_t>(i);
    const std::size_t bytes = features(i) * sizeof(double);
    to_device(storage_.means[m], vectors.means[m].data(), bytes, stream);
    to_device(storage_.shifts[m], vectors.shifts[m].data(), bytes, stream);
  }
  for (std::size_t b = 0; b < m2.size(); ++b) {
    const Total& total = storage_.totals[b];
    to_device(total.data, m2[b],
              static_cast<std::size_t>(total.rows * total.columns) * sizeof(double), stream);
  }
}

}  // namespace ccamerge::cuda
