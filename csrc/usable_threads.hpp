// How many threads this process should use, and what says so.
#pragma once

namespace ccamerge {

struct UsableThreads {
  int count;
  const char* reason;
};

// The least of: the cores of the affinity mask, the cgroup's quota of processor time, and what
// OpenMP is told (OMP_NUM_THREADS, or torch's own number once torch is there). At least 1.
UsableThreads usable_threads();

}  // namespace ccamerge
