// Tasks on several threads: torch's where it has them (see team.hpp), else the core's own. BLAS
// below runs on one thread.
#pragma once

#include <cstddef>
#include <functional>

namespace ccamerge {

constexpr int most_threads = 1024;

// Threads used by parallel_for, the caller included. Defaults to what usable_threads() says.
int num_threads();
const char* num_threads_reason();  // what decided that
void set_num_threads(int count);   // 1..most_threads, else std::invalid_argument

// Runs task(i) for i in [0, count), each exactly once, on up to num_threads() threads and returns
// when all are done. Tasks are claimed in order, so put long ones first. The first exception stops
// further claims and is rethrown here. A call from inside a task, or while another caller holds the
// pool, runs on the calling thread alone. Which thread runs a task must not change its result.
void parallel_for(std::size_t count, const std::function<void(std::size_t)>& task);

// Called on the calling thread between tasks, at most every 50 ms; throws Interrupted to stop.
// Thread-local, so that each caller polls for itself; empty means never.
class InterruptGuard {
 public:
  explicit InterruptGuard(std::function<void()> poll);
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
};

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
