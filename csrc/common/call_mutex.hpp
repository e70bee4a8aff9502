// A mutex for objects that Python's signal handlers and forked children may reach.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>

#include "common/parallel.hpp"

namespace ccamerge {

// Where waiting would never end, lock() throws std::runtime_error: in the call that holds the lock
// already, which a signal handler may have interrupted; for another thread, where that may be
// waiting for what the interrupted call holds; and in a forked child, if a thread of the parent
// held the lock, which is not there to let go.
class CallMutex {
 public:
  void lock() {
    const std::uint64_t own = owner();
    for (std::uint64_t held = 0; !holder_.compare_exchange_strong(held, own); held = 0) {
      if (held == own) {
        throw std::runtime_error(
            "these moments are in use by the call that this one interrupts (from a signal "
            "handler?): read them when that call has returned");
      }
      if (held >> 32 != own >> 32) {
        throw std::runtime_error(
            "these moments were in use by another thread when this process was forked, and may be "
            "half changed: fork when no call is under way, or give the child a copy");
      }
      if (inside_poll()) {
        throw std::runtime_error(
            "these moments are in use by another thread, and a call from a signal handler must not "
            "wait: read them when the interrupted call has returned");
      }
      holder_.wait(held);
    }
  }

  bool try_lock() {
    std::uint64_t held = 0;
    return holder_.compare_exchange_strong(held, owner());
  }

  void unlock() {
    holder_ = 0;
    holder_.notify_one();
  }

 private:
  // The process above, the thread below: a number of its own, never 0.
  static std::uint64_t owner() {
    static std::atomic<std::uint32_t> threads{0};
    thread_local const std::uint32_t thread = ++threads;
    return static_cast<std::uint64_t>(getpid()) << 32 | thread;
  }

  std::atomic<std::uint64_t> holder_{0};
};

}  // namespace ccamerge
