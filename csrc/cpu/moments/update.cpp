// The update of streamed moments: locks, memory, and putting everything back if it fails.
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>

#include "common/parallel.hpp"
#include "cpu/moments/moments.hpp"
#include "cpu/moments/updater.hpp"

namespace ccamerge {
namespace {

// Copies of totals; with a packed chunk below 64 MiB of extra memory.
constexpr std::size_t most_snapshot_bytes = std::size_t{16} << 20;

// The shared workspace if nobody has it, else one of the caller's own.
class WorkspaceLoan {
 public:
  WorkspaceLoan() : shared_(!taken().exchange(true)) {
    static auto* const shared = new Workspace;  // never destroyed: threads may outlive statics
    if (shared_) {
      workspace_ = shared;
    } else {
      own_ = std::make_unique<Workspace>();
      workspace_ = own_.get();
    }
  }
  ~WorkspaceLoan() {
    if (shared_) taken() = false;
  }
  WorkspaceLoan(const WorkspaceLoan&) = delete;
  WorkspaceLoan& operator=(const WorkspaceLoan&) = delete;
  Workspace& operator*() const { return *workspace_; }

 private:
  static std::atomic<bool>& taken() {
    static std::atomic<bool> instance{false};
    return instance;
  }
  bool shared_;
  std::unique_ptr<Workspace> own_;
  Workspace* workspace_;
};

}  // namespace

// An accumulator in a call: where it began, and its totals put back unless the call succeeds.
class Undertaking {
 public:
  explicit Undertaking(Moments& moments) : moments_(moments), lock_(moments.mutex_) {}
  ~Undertaking() { put_back(); }
  Undertaking(const Undertaking&) = delete;
  Undertaking& operator=(const Undertaking&) = delete;

  Course begin() const {
    Course course{{moments_.count_, moments_.means_, moments_.shifts_}, moments_.means_};
    for (const Block& block : moments_.blocks_) {
      if (block.row != block.column) continue;
      auto& squares = course.squares[static_cast<std::size_t>(block.row)];
      for (std::size_t f = 0; f < squares.size(); ++f)
        squares[f] = block.m2[f * squares.size() + f];
    }
    return course;
  }
  void keep_totals() {
    for (const Block& block : moments_.blocks_) m2_.push_back(block.m2);
  }
  void put_back() {
    for (std::size_t b = 0; b < m2_.size(); ++b) moments_.blocks_[b].m2.swap(m2_[b]);
    m2_.clear();
  }
  void finish(Vectors& vectors) noexcept {
    m2_.clear();
    moments_.count_ = vectors.count;
    moments_.means_.swap(vectors.means);
    moments_.shifts_.swap(vectors.shifts);
  }

 private:
  Moments& moments_;
  std::unique_lock<CallMutex> lock_;
  std::vector<Totals> m2_;
};

namespace {

using Undertakings = std::map<Moments*, Undertaking>;  // in one order of locking for all callers
using Courses = std::map<Moments*, Course>;

Courses courses_of(const Undertakings& all) {
  Courses out;
  for (const auto& [moments, one] : all) out.emplace(moments, one.begin());
  return out;
}

// Throws Underflow with `at` the number of the update that has to be made in float64; totals may
// have changed then, unless they were kept.
void attempt(const std::vector<Update>& updates, const std::vector<bool>& wide, Undertakings& all,
             Workspace& workspace, std::size_t& at) {
  std::vector<std::unique_ptr<Updater>> updaters(updates.size());
  std::int64_t chunks = 0;
  std::size_t input_bytes = 0, total_bytes = 0;
  for (std::size_t i = 0; i < updates.size(); ++i) {
    updaters[i] = std::make_unique<Updater>(updates[i], wide[i]);
    updaters[i]->reserve(workspace);
    chunks += updaters[i]->chunks();
    input_bytes += updaters[i]->input_bytes();
    total_bytes += updaters[i]->total_bytes();
  }

  // Bad input is found while packing. Within one chunk that is before anything has changed; beyond
  // it, either the totals can be copied cheaply or the input is looked through first. Without a
  // copy, an interrupt has to wait while totals change.
  const bool copy =
      chunks > 1 && total_bytes <= most_snapshot_bytes && 4 * total_bytes <= input_bytes;
  std::optional<InterruptPause> pause;
  if (copy) {
    for (auto& [moments, one] : all) one.keep_totals();
  } else if (chunks > 1) {
    Courses courses = courses_of(all);
    for (at = 0; at < updates.size(); ++at) {
      updaters[at]->attach(workspace);
      updaters[at]->check(courses.at(updates[at].moments));
    }
    pause.emplace();
  }
  Courses courses = courses_of(all);
  for (at = 0; at < updates.size(); ++at) {
    updaters[at]->attach(workspace);
    updaters[at]->run(courses.at(updates[at].moments), copy);
  }
  for (auto& [moments, one] : all) one.finish(courses.at(moments).vectors);
}

}  // namespace

void update(const std::vector<Update>& updates) {
  Undertakings all;
  std::set<Moments*> distinct;
  for (const Update& one : updates) distinct.insert(one.moments);
  for (Moments* moments : distinct) all.try_emplace(moments, *moments);
  const WorkspaceLoan workspace;
  std::vector<bool> wide(updates.size(), false);
  for (std::size_t at = 0, tries = 0;; ++tries) {
    try {
      return attempt(updates, wide, all, *workspace, at);
    } catch (const Underflow&) {
      for (auto& [moments, one] : all) one.put_back();
      if (tries < 2) {
        wide[at] = true;
      } else {
        wide.assign(wide.size(), true);
      }
    }
  }
}

}  // namespace ccamerge
