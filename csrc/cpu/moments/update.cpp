// The update of streamed moments: locks, memory, and putting everything back if it fails.
#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>

#include "cpu/moments/moments.hpp"
#include "cpu/moments/updater.hpp"
#include "parallel.hpp"

namespace ccamerge {
namespace {

// Copies of totals; with a packed chunk below 64 MiB of extra memory.
constexpr std::size_t most_snapshot_bytes = std::size_t{16} << 20;

class WorkspaceLoan {
 public:
  WorkspaceLoan() : lock_(mutex(), std::try_to_lock) {
    static auto* const shared = new Workspace;  // never destroyed: threads may outlive statics
    if (lock_.owns_lock()) {
      workspace_ = shared;
    } else {
      own_ = std::make_unique<Workspace>();
      workspace_ = own_.get();
    }
  }
  Workspace& operator*() const { return *workspace_; }

 private:
  static std::mutex& mutex() {
    static auto* const instance = new std::mutex;
    return *instance;
  }
  std::unique_lock<std::mutex> lock_;
  std::unique_ptr<Workspace> own_;
  Workspace* workspace_;
};

}  // namespace

// Puts an accumulator back as it was, unless the call succeeds.
class Rollback {
 public:
  Rollback(Moments& moments, bool blocks)
      : moments_(moments),
        count_(moments.count_),
        means_(moments.means_),
        shifts_(moments.shifts_) {
    if (!blocks) return;
    for (const Block& block : moments.blocks_) m2_.push_back(block.m2);
  }
  ~Rollback() {
    if (!armed_) return;
    moments_.count_ = count_;
    moments_.means_.swap(means_);
    moments_.shifts_.swap(shifts_);
    for (std::size_t b = 0; b < m2_.size(); ++b) moments_.blocks_[b].m2.swap(m2_[b]);
  }
  Rollback(const Rollback&) = delete;

  void disarm() { armed_ = false; }
  static std::mutex& mutex(Moments& moments) { return moments.mutex_; }

 private:
  Moments& moments_;
  bool armed_ = true;
  std::int64_t count_;
  std::vector<std::vector<double>> means_, shifts_, m2_;
};

void update(const std::vector<Update>& updates) {
  std::vector<Moments*> distinct;
  for (const Update& one : updates) distinct.push_back(one.moments);
  std::sort(distinct.begin(), distinct.end());  // one order of locking for all callers
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  std::vector<std::unique_lock<std::mutex>> locks;
  for (Moments* moments : distinct) locks.emplace_back(Rollback::mutex(*moments));

  const WorkspaceLoan workspace;
  std::vector<std::unique_ptr<Updater>> updaters;
  std::int64_t chunks = 0;
  std::size_t input_bytes = 0, total_bytes = 0;
  for (const Update& one : updates) {
    auto updater = std::make_unique<Updater>(one);
    if (updater->chunks() == 0) continue;  // every sample masked out
    updater->reserve(*workspace);
    chunks += updater->chunks();
    input_bytes += updater->input_bytes();
    total_bytes += updater->total_bytes();
    updaters.push_back(std::move(updater));
  }

  // Bad input is found while packing. Within one chunk that is before anything has changed; beyond
  // it, either the totals can be copied cheaply or the input is looked through first. Without a
  // copy, an interrupt has to wait while totals change.
  const bool copy =
      chunks > 1 && total_bytes <= most_snapshot_bytes && 4 * total_bytes <= input_bytes;
  if (chunks > 1 && !copy) {
    for (auto& updater : updaters) {
      updater->attach(*workspace);
      updater->check();
    }
  }
  std::vector<std::unique_ptr<Rollback>> rollbacks;
  for (Moments* moments : distinct) rollbacks.push_back(std::make_unique<Rollback>(*moments, copy));
  std::optional<InterruptPause> pause;
  if (chunks > 1 && !copy) pause.emplace();
  for (auto& updater : updaters) {
    updater->attach(*workspace);
    updater->run(copy);
  }
  for (auto& rollback : rollbacks) rollback->disarm();
}

}  // namespace ccamerge
