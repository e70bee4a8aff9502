#include "parallel.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "check.hpp"
#include "team.hpp"
#include "usable_threads.hpp"

namespace ccamerge {
namespace {

using Clock = std::chrono::steady_clock;

thread_local std::function<void()> interrupt_poll;
thread_local Clock::time_point next_poll;
thread_local bool inside_task = false;

std::atomic<int> requested_threads{0};  // 0: not set, follow what the process may use

// One parallel_for call. Workers and the caller claim indices from the same counter.
struct Job {
  const std::function<void(std::size_t)>* task;
  std::size_t count;
  std::atomic<std::size_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex error_mutex;
  std::exception_ptr error;

  void fail() {
    std::lock_guard lock(error_mutex);
    if (!error) error = std::current_exception();
    failed = true;
  }

  void work() {
    inside_task = true;
    while (!failed) {
      const std::size_t i = next.fetch_add(1);
      if (i >= count) break;
      try {
        poll_interrupt();  // on the calling thread; others have no poll
        (*task)(i);
      } catch (...) {
        fail();
      }
    }
    inside_task = false;
  }
};

class Pool {
 public:
  explicit Pool(int workers) {
    try {
      for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { loop(); });
    } catch (...) {  // a thread could not be started: stop those that were
      stop();
      throw;
    }
  }

  ~Pool() { stop(); }

  int workers() const { return static_cast<int>(threads_.size()); }

  // Waits for workers that have begun, and not for those that the scheduler has yet to wake: these
  // find the job gone.
  void run(Job& job) {
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      ++generation_;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void loop() {
    std::size_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      Job* job = job_;
      if (!job) continue;
      ++busy_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  void stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int busy_ = 0;
  std::size_t generation_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

// Held while a call uses the pool; a second caller runs alone instead of waiting. Both objects are
// never destroyed: at exit, and in a forked child, the threads they know of may be gone.
struct PoolState {
  std::mutex in_use;
  std::unique_ptr<Pool> pool;
  pid_t owner = 0;
};

PoolState& pool_state() {
  static auto* state = new PoolState;
  if (state->owner != getpid()) {  // first use, or a fork: the parent's threads do not exist here
    if (state->owner != 0) state = new PoolState;
    state->owner = getpid();
  }
  return *state;
}

}  // namespace

int num_threads() {
  const int requested = requested_threads;
  return requested > 0 ? requested : usable_threads().count;
}

const char* num_threads_reason() {
  return requested_threads > 0 ? "set_num_threads" : usable_threads().reason;
}

void set_num_threads(int count) {
  if (count < 1 || count > most_threads) {
    throw std::invalid_argument(
        format_message("count must be in 1..", most_threads, ", got ", count));
  }
  requested_threads = count;
}

void parallel_for(std::size_t count, const std::function<void(std::size_t)>& task) {
  if (count == 0) return;
  Job job;
  job.task = &task;
  job.count = count;
  const int threads = num_threads();
  if (inside_task) {  // nested: the outer loop already uses the pool
    for (std::size_t i = 0; i < count; ++i) task(i);
    return;
  }
  static std::mutex state_mutex;
  PoolState* state = nullptr;
  {
    std::lock_guard lock(state_mutex);
    state = &pool_state();
  }
  std::unique_lock use(state->in_use, std::try_to_lock);
  if (threads == 1 || count == 1 || !use.owns_lock()) {
    job.work();
  } else if (!run_on_torch_threads(threads, [&job] { job.work(); })) {
    if (!state->pool || state->pool->workers() != threads - 1) {
      state->pool.reset();
      state->pool = std::make_unique<Pool>(threads - 1);
    }
    state->pool->run(job);
  }
  if (job.error) std::rethrow_exception(job.error);
}

InterruptGuard::InterruptGuard(std::function<void()> poll) {
  interrupt_poll = std::move(poll);
  next_poll = Clock::now() + std::chrono::milliseconds(50);
}

InterruptGuard::~InterruptGuard() { interrupt_poll = nullptr; }

InterruptPause::InterruptPause() { poll_.swap(interrupt_poll); }

InterruptPause::~InterruptPause() { poll_.swap(interrupt_poll); }

void poll_interrupt() {
  if (!interrupt_poll) return;
  const auto now = Clock::now();
  if (now < next_poll) return;
  next_poll = now + std::chrono::milliseconds(50);
  interrupt_poll();
}

}  // namespace ccamerge
