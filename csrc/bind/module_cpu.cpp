// The CPU module: takes BLAS and LAPACK from SciPy, then registers each topic.
#include <pybind11/pybind11.h>

#include <string>

#include "blas.hpp"
#include "errors.hpp"
#include "parallel.hpp"

namespace py = pybind11;

namespace ccamerge::bind {

void register_moments(py::module_& m);
void register_solve(py::module_& m);

void register_errors() {
  // The type is looked up when thrown: importing NumPy here would make every import pay for it.
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const NumericalError& e) {
      const py::object type = py::module_::import("numpy").attr("linalg").attr("LinAlgError");
      PyErr_SetString(type.ptr(), e.what());
    }
  });
}

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

}  // namespace ccamerge::bind

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native core of ccamerge: streamed moments and batched solves on the CPU.";
  m.attr("cuda_built") = CCAMERGE_CUDA_BUILT != 0;
  ccamerge::bind::register_errors();
  ccamerge::blas::bind(ccamerge::bind::scipy_routine);
  m.def("num_threads", &ccamerge::num_threads,
        "Threads the core uses; by default the cores this process may run on.");
  m.def("set_num_threads", &ccamerge::set_num_threads, py::arg("count"),
        "Sets the number of threads, at least 1.");
  ccamerge::bind::register_moments(m);
  ccamerge::bind::register_solve(m);
}
