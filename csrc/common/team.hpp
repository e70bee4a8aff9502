// The OpenMP threads that torch keeps. Between two parallel regions they spin for some
// milliseconds, so threads of our own beside them would have half a core each: with features coming
// out of torch's convolutions, moments were measured 1.6 times slower. But a region of theirs
// begins and ends when all of them have arrived: where others keep the cores busy, that takes as
// long as the scheduler likes, and they are left alone.
#pragma once

#include <functional>

namespace ccamerge {

// Runs body once on each of up to `threads` threads, the caller included, of the OpenMP runtime
// that torch has loaded, and returns true when all are done. False, and nothing is run, if torch is
// not there, uses another runtime, or this is a forked process, where its threads would be missing.
// Nothing is run either for some time after a region in which arriving took longer than the work.
// The body must not throw.
bool run_on_torch_threads(int threads, const std::function<void()>& body);

// Whether those threads are there for this process, be they left alone at the moment or not.
bool torch_threads_found();

}  // namespace ccamerge
