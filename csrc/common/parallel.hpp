// Tasks on several threads: torch's where it has them (see team.hpp), else the core's own, which
// sleep when there is nothing to do. BLAS below runs on one thread.
#pragma once

#include <cstddef>
#include <functional>

#include "common/cores.hpp"

namespace ccamerge {

inline constexpr int kMostThreads = 1024;

// Threads used by parallel_for, the caller included, and what decided that: what was set, else the
// least of usable_threads(), torch's number and kMostThreads.
ThreadLimit thread_limit();
int num_threads();                // its count
void set_num_threads(int count);  // 1..kMostThreads, else std::invalid_argument

// Torch's own number of threads, as its caller knows it; 0 without torch.
void follow_torch_threads(int count);

// Runs task(i) for i in [0, count), each exactly once, on up to num_threads() threads and returns
// when all are done. Tasks are claimed in order, so put long ones first. An exception stops further
// claims; that of the first task that failed is rethrown here. A call from inside a task, or while
// another caller holds the pool, runs on the calling thread alone. Which thread runs a task must
// not change its result.
//
// On a busy machine a thread may come late, or not at all: a call waits for no thread but those in
// the middle of a task.
void parallel_for(std::size_t count, const std::function<void(std::size_t)>& task);

// Called on the calling thread between tasks, at most every 50 ms; throws Interrupted to stop.
// Thread-local, so that each caller polls for itself; empty means never. A poll may make calls of
// its own, which poll for themselves and leave everything as it was.
class InterruptGuard {
 public:
  explicit InterruptGuard(std::function<void()> poll);
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  std::function<void()> before_;
};

// Whether this thread is in a call that another call's poll has made.
bool inside_poll();

// No polling on this thread while one exists: for steps that must not stop half way.
class InterruptPause {
 public:
  InterruptPause();
  ~InterruptPause();
  InterruptPause(const InterruptPause&) = delete;
  InterruptPause& operator=(const InterruptPause&) = delete;

 private:
  std::function<void()> poll_;
};

// For long serial work inside one task on the calling thread.
void poll_interrupt();

}  // namespace ccamerge
