// What Python knows of threads.
#pragma once

#include <pybind11/pybind11.h>

namespace ccamerge::bind {

// Limits the core's threads to torch's own number, if torch has been imported: who lowers that
// wants fewer threads. With the GIL held. Never imports torch.
void follow_torch();

void register_threads(pybind11::module_& m);

}  // namespace ccamerge::bind
