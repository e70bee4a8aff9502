// What the native tests of the CUDA backend share. They run on a GPU, also under compute-sanitizer,
// and on the emulation.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/libraries.hpp"
#include "cuda/memory.hpp"
#include "cuda/runtime.hpp"
#include "testing.hpp"

namespace ccamerge::testing {

inline cuda::Buffer allocate(std::size_t bytes) {
  void* memory = nullptr;
  cuda::check(cudaMalloc(&memory, bytes), "cudaMalloc");
  return {std::shared_ptr<void>(memory, [](void* p) { cudaFree(p); }),
          static_cast<std::byte*>(memory), bytes};
}

template <class T>
cuda::Buffer on_device(const std::vector<T>& values) {
  cuda::Buffer buffer = allocate(values.size() * sizeof(T));
  cuda::to_device(buffer.data, values.data(), values.size() * sizeof(T), nullptr);
  return buffer;
}

// CCAMERGE_CUBLAS and CCAMERGE_CUSOLVER may name the libraries' files.
inline void load_cuda_libraries() {
  const auto named = [](const char* variable, const char* otherwise) -> std::vector<std::string> {
    const char* const value = std::getenv(variable);
    return {value ? value : otherwise};
  };
  cuda::load_libraries(named("CCAMERGE_CUBLAS", "libcublas.so.13"),
                       named("CCAMERGE_CUSOLVER", "libcusolver.so.12"));
}

inline std::mt19937_64 random_numbers;

inline int pick(int least, int most) {
  return std::uniform_int_distribution<int>(least, most)(random_numbers);
}

// Loads libraries and seeds the numbers: fresh ones in each run, unless the program is given a
// seed, which is printed.
inline void start(int argc, char** argv) {
  bind_blas();
  load_cuda_libraries();
  const unsigned long seed = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : std::random_device{}();
  std::printf("seed %lu\n", seed);
  random_numbers.seed(seed);
}

}  // namespace ccamerge::testing
