// The little that the native tests share: an expectation that counts, and BLAS without Python.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <string>

#include "host/blas.hpp"

namespace ccamerge::testing {

inline int failures = 0;

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++ccamerge::testing::failures;                                       \
    }                                                                      \
  } while (false)

inline void bind_blas() {
  void* const library = dlopen(CCAMERGE_BLAS_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  blas::bind([library](const char* name) -> void* {
    return library ? dlsym(library, ("scipy_" + std::string(name) + "_").c_str()) : nullptr;
  });
}

inline int result() {
  if (failures) std::fprintf(stderr, "%d expectations failed\n", failures);
  return failures ? 1 : 0;
}

}  // namespace ccamerge::testing
