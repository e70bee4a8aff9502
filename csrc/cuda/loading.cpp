// Finding cuBLAS and cuSOLVER. An emulated build has csrc/emulation/libraries.cpp instead.
#include <dlfcn.h>

#include <initializer_list>
#include <mutex>
#include <stdexcept>

#include "common/check.hpp"
#include "cuda/libraries.hpp"
#include "cuda/library_table.hpp"

namespace ccamerge::cuda {
namespace {

LibraryTable table;

// A copy that is loaded already comes first: a second one would waste memory, and torch's own is
// the one that fits its CUDA.
void* open(const char* name, std::initializer_list<const char*> sonames,
           const std::vector<std::string>& candidates) {
  for (const char* soname : sonames) {
    if (void* const found = dlopen(soname, RTLD_NOW | RTLD_NOLOAD)) return found;
  }
  std::string reasons;
  for (const std::string& candidate : candidates) {
    if (void* const found = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL)) return found;
    reasons += std::string(reasons.empty() ? "" : "; ") + dlerror();
  }
  throw std::runtime_error(
      format_message(name, " cannot be loaded: ", reasons.empty() ? "not found" : reasons));
}

void* symbol(void* library, const char* name) {
  void* const found = dlsym(library, name);
  if (!found) throw std::runtime_error(format_message("no ", name, " in the CUDA libraries"));
  return found;
}

}  // namespace

const LibraryTable& library_table() { return table; }

void load_libraries(const std::vector<std::string>& cublas,
                    const std::vector<std::string>& cusolver) {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  if (table.cublasCreate_v2) return;
  void* const blas = open("cuBLAS", {"libcublas.so.13"}, cublas);
  void* const solver = open("cuSOLVER", {"libcusolver.so.12"}, cusolver);
  LibraryTable loaded;
#define CCAMERGE_LOAD_BLAS(result, name, parameters) \
  loaded.name = reinterpret_cast<result(*) parameters>(symbol(blas, #name));
#define CCAMERGE_LOAD_SOLVER(result, name, parameters) \
  loaded.name = reinterpret_cast<result(*) parameters>(symbol(solver, #name));
  CCAMERGE_CUBLAS(CCAMERGE_LOAD_BLAS)
  CCAMERGE_CUSOLVER(CCAMERGE_LOAD_SOLVER)
  table = loaded;
}

}  // namespace ccamerge::cuda
