// The CPU module: takes BLAS and LAPACK from SciPy, then registers each topic.
#include <pybind11/pybind11.h>

#include "errors.hpp"
#include "parallel.hpp"
#include "scipy.hpp"

namespace py = pybind11;

namespace ccamerge::bind {

void register_moments(py::module_& m);
void register_solve(py::module_& m);

}  // namespace ccamerge::bind

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native core of ccamerge: streamed moments and batched solves on the CPU.";
  m.attr("cuda_built") = CCAMERGE_CUDA_BUILT != 0;
  ccamerge::bind::register_errors();
  ccamerge::bind::bind_scipy();
  m.def(
      "num_threads", &ccamerge::num_threads,
      "Threads the core uses: what set_num_threads said, else the least of the cores this process "
      "may run on, its cgroup's quota, OMP_NUM_THREADS and torch's own number.");
  m.def("num_threads_reason", &ccamerge::num_threads_reason, "What decided num_threads().");
  m.def("set_num_threads", &ccamerge::set_num_threads, py::arg("count"),
        "Sets the number of threads, in 1..1024.");
  ccamerge::bind::register_moments(m);
  ccamerge::bind::register_solve(m);
}
