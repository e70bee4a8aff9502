// Which CUDA devices this process can use. No Python, no CUDA headers: the bindings include this.
#pragma once

#include <string>
#include <vector>

namespace ccamerge::cuda {

struct Device {
  std::string name;
  int major, minor;    // compute capability
  std::size_t memory;  // bytes
  int multiprocessors;
};

// The devices, in CUDA's order. Throws std::runtime_error with the runtime's name and text of the
// error where there is no driver, or one too old for the runtime built in.
std::vector<Device> devices();

// The CUDA runtime built in, as major * 1000 + minor * 10.
int runtime_version();

}  // namespace ccamerge::cuda
