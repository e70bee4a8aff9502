#include "common/parallel.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.hpp"
#include "common/team.hpp"

namespace ccamerge {
namespace {

using Clock = std::chrono::steady_clock;

// How long a thread looks for work, or for the end of others', before it sleeps: about as long as
// waking it takes. The parts of an update follow each other more quickly than that.
constexpr auto kLook = std::chrono::microseconds(20);

constexpr auto kPollEvery = std::chrono::milliseconds(50);

thread_local std::function<void()> interrupt_poll;
thread_local Clock::time_point next_poll;
thread_local int polls = 0;  // under way on this thread
thread_local bool inside_task = false;

std::atomic<int> requested_threads{0};  // 0: not set, follow the limits
std::atomic<int> torch_threads{0};      // 0: torch is not there

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
void look_for(const Condition& condition) {
  const auto until = Clock::now() + kLook;
  while (!condition() && Clock::now() < until) {
    for (int i = 0; i < 16; ++i) relax();
  }
}

// One parallel_for call. Workers and the caller claim indices from the same counter.
struct Job {
  const std::function<void(std::size_t)>* task;
  std::size_t count;
  std::atomic<std::size_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex error_mutex;
  std::exception_ptr error;
  std::size_t error_place = 0;

  // Of several tasks that fail the first by its index is told of, however they were timed: those
  // before it were claimed before it, and end.
  void fail(std::size_t place) {
    std::lock_guard lock(error_mutex);
    if (!error || place < error_place) {
      error = std::current_exception();
      error_place = place;
    }
    failed = true;
  }

  void work() {
    const bool before = std::exchange(inside_task, true);
    while (!failed) {
      const std::size_t i = next.fetch_add(1);
      if (i >= count) break;
      std::size_t place = 0;  // an interrupt comes before all tasks
      try {
        poll_interrupt();  // on the calling thread; others have no poll
        place = i + 1;
        (*task)(i);
      } catch (...) {
        fail(place);
      }
    }
    inside_task = before;
  }
};

// Threads that join whatever job is open when they come to it. The caller does not wait for those
// that do not come: on a busy machine the job would take as long as the slowest of them to wake.
class Pool {
 public:
  explicit Pool(int workers) : wanted_(workers) {
    try {
      for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { loop(); });
    } catch (const std::system_error&) {  // no more threads: those that there are will do
    }
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      ++turn_;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  int wanted() const { return wanted_; }

  void run(Job& job) {
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      ++turn_;
    }
    const std::size_t helpers = std::min(threads_.size(), job.count - 1);
    for (std::size_t i = 0; i < helpers; ++i) wake_.notify_one();
    job.work();
    {
      std::lock_guard lock(mutex_);
      job_ = nullptr;
    }
    const auto done = [this] { return inside_ == 0; };
    look_for(done);
    std::unique_lock lock(mutex_);
    done_.wait(lock, done);
  }

 private:
  void loop() {
    std::size_t seen = 0;
    for (;;) {
      look_for([&] { return turn_ != seen; });
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return turn_ != seen; });
      seen = turn_;
      if (stopping_) return;
      Job* const job = job_;
      if (!job) continue;  // too late: the others have done it all
      ++inside_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--inside_ == 0) done_.notify_one();
    }
  }

  const int wanted_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  std::atomic<int> inside_{0};        // workers in the job; changed with the mutex held
  std::atomic<std::size_t> turn_{0};  // a number for each job, as well
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

// Held while a call uses the pool; a second caller runs alone instead of waiting. Never destroyed:
// at exit, and in a forked child, the threads that it knows of may be gone.
struct PoolState {
  const pid_t owner = getpid();
  std::atomic<bool> in_use{false};
  std::unique_ptr<Pool> pool;
};

// The process's own. After a fork the parent's threads do not exist here, and its state may have
// been in use.
PoolState& pool_state() {
  static std::atomic<PoolState*> current{nullptr};
  PoolState* state = current;
  if (state && state->owner == getpid()) return *state;
  auto fresh = std::make_unique<PoolState>();
  // Another thread may have been first, whose state is then in `state`.
  return *(current.compare_exchange_strong(state, fresh.get()) ? fresh.release() : state);
}

class PoolUse {
 public:
  explicit PoolUse(PoolState& state) : state_(state), owns_(!state.in_use.exchange(true)) {}
  ~PoolUse() {
    if (owns_) state_.in_use = false;
  }
  PoolUse(const PoolUse&) = delete;
  PoolUse& operator=(const PoolUse&) = delete;
  bool owns() const { return owns_; }

 private:
  PoolState& state_;
  bool owns_;
};

}  // namespace

ThreadLimit thread_limit() {
  if (const int requested = requested_threads; requested > 0) return {"set_num_threads", requested};
  ThreadLimit least = usable_threads();
  if (const int torch = torch_threads; torch > 0 && torch < least.count) {
    least = {"torch's number of threads", torch};
  }
  if (kMostThreads < least.count) least = {"the most that ccamerge uses", kMostThreads};
  return least;
}

int num_threads() { return thread_limit().count; }

void set_num_threads(int count) {
  if (count < 1 || count > kMostThreads) {
    throw std::invalid_argument(
        format_message("count must be in 1..", kMostThreads, ", got ", count));
  }
  requested_threads = count;
}

void follow_torch_threads(int count) { torch_threads = count; }

void parallel_for(std::size_t count, const std::function<void(std::size_t)>& task) {
  if (count == 0) return;
  if (inside_task) {  // nested: the outer loop already uses the pool
    for (std::size_t i = 0; i < count; ++i) {
      poll_interrupt();
      task(i);
    }
    return;
  }
  Job job;
  job.task = &task;
  job.count = count;
  const int threads = num_threads();
  PoolState& state = pool_state();
  const PoolUse use(state);
  if (threads == 1 || count == 1 || !use.owns()) {
    job.work();
  } else if (!run_on_torch_threads(threads, [&job] { job.work(); })) {
    // Torch's first: with two threads on two quiet cores an update after a convolution took 2.8 ms
    // on them and 4.0 ms on these, beside which torch's still spun (2.4 and 2.5 ms without any).
    // These where torch's have been slow: beside four busy processes both ways take as long as one
    // thread or less, where torch's alone took up to 250 times as long.
    if (!state.pool || state.pool->wanted() != threads - 1) {
      state.pool.reset();
      state.pool = std::make_unique<Pool>(threads - 1);
    }
    state.pool->run(job);
  }
  if (job.error) std::rethrow_exception(job.error);
}

InterruptGuard::InterruptGuard(std::function<void()> poll)
    : before_(std::exchange(interrupt_poll, std::move(poll))) {
  next_poll = Clock::now() + kPollEvery;
}

InterruptGuard::~InterruptGuard() { interrupt_poll = std::move(before_); }

bool inside_poll() { return polls > 0; }

InterruptPause::InterruptPause() { poll_.swap(interrupt_poll); }

InterruptPause::~InterruptPause() { poll_.swap(interrupt_poll); }

void poll_interrupt() {
  if (!interrupt_poll || Clock::now() < next_poll) return;
  struct Count {
    Count() { ++polls; }
    ~Count() {
      --polls;
      next_poll = Clock::now() + kPollEvery;
    }
  } const count;
  const auto poll = interrupt_poll;  // the poll's own calls replace it for a while
  poll();
}

}  // namespace ccamerge
