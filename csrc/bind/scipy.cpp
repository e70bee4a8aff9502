#include "scipy.hpp"

#include <pybind11/pybind11.h>

#include <string>

#include "host/blas.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

// SciPy exports each routine as a capsule whose name is its C signature. Integers must be 32-bit:
// an ILP64 build of SciPy spells them differently, and calling it would corrupt memory.
void* scipy_routine(const char* name) {
  for (const char* module : {"scipy.linalg.cython_blas", "scipy.linalg.cython_lapack"}) {
    const py::dict api = py::module_::import(module).attr("__pyx_capi__");
    if (!api.contains(name)) continue;
    const py::object capsule = api[name];
    const char* signature = PyCapsule_GetName(capsule.ptr());
    if (std::string(signature).find("int64") != std::string::npos) {
      throw py::import_error(
          "this SciPy uses 64-bit BLAS integers, which ccamerge does not support");
    }
    return PyCapsule_GetPointer(capsule.ptr(), signature);
  }
  return nullptr;
}

}  // namespace

void bind_scipy() { blas::bind(scipy_routine); }

}  // namespace ccamerge::bind
