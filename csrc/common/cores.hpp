// How many threads this process should use, and what says so.
#pragma once

#include <optional>
#include <string>

namespace ccamerge {

struct ThreadLimit {
  const char* source;  // for people: "OMP_NUM_THREADS"
  int count;           // at least 1
};

// The least of the cores that this process may run on now and of what lasts: the CPU quota of its
// control groups and the first number of OMP_NUM_THREADS, both as they were when first asked for.
ThreadLimit usable_threads();

// The first number of a list like "4,2", as OMP_NUM_THREADS has it; nothing for anything else.
std::optional<int> first_thread_count(const char* list);

// The quota of this process's control groups in whole cores, rounded up: the least of its own group
// and those above, of version 2 (cpu.max) and of version 1 (cpu.cfs_quota_us). Nothing without a
// quota. `root` is put before every path, for tests.
std::optional<int> quota_cores(const std::string& root = "");

}  // namespace ccamerge
