// The CPU module: takes BLAS and LAPACK from SciPy, then registers each topic.
#include <pybind11/pybind11.h>

#include "errors.hpp"
#include "scipy.hpp"
#include "threads.hpp"

namespace py = pybind11;

namespace ccamerge::bind {

void register_moments(py::module_& m);
void register_scratch(py::module_& m);
void register_solve(py::module_& m);

}  // namespace ccamerge::bind

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native core of ccamerge: streamed moments and batched solves on the CPU.";
  m.attr("cuda_built") = CCAMERGE_CUDA_BUILT != 0;
  ccamerge::bind::register_errors();
  ccamerge::bind::bind_scipy();
  ccamerge::bind::register_threads(m);
  ccamerge::bind::register_moments(m);
  ccamerge::bind::register_scratch(m);
  ccamerge::bind::register_solve(m);
}
