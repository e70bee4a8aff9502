// The CUDA module. Importing it needs no driver; asking it for devices does. Its own copy of the
// core serves what has to be finished on the CPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/device.hpp"
#include "cuda/libraries.hpp"
#include "errors.hpp"
#include "scipy.hpp"

namespace py = pybind11;

namespace ccamerge::bind {

void register_cuda_moments(py::module_& m);
void register_cuda_solve(py::module_& m);

}  // namespace ccamerge::bind

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA backend of ccamerge.";
#ifdef CCAMERGE_EMULATED
  m.attr("emulated") = true;
#else
  m.attr("emulated") = false;
#endif
  ccamerge::bind::register_errors();
  ccamerge::bind::bind_scipy();
  py::class_<ccamerge::cuda::Device>(m, "Device", "A CUDA device.")
      .def_readonly("name", &ccamerge::cuda::Device::name)
      .def_readonly("major", &ccamerge::cuda::Device::major)
      .def_readonly("minor", &ccamerge::cuda::Device::minor)
      .def_readonly("memory", &ccamerge::cuda::Device::memory, "Bytes.")
      .def_readonly("multiprocessors", &ccamerge::cuda::Device::multiprocessors);
  m.def("devices", &ccamerge::cuda::devices, py::call_guard<py::gil_scoped_release>(),
        "Devices in CUDA's order; RuntimeError with the reason where CUDA cannot be used.");
  m.def("runtime_version", &ccamerge::cuda::runtime_version,
        "The CUDA runtime built in, major * 1000 + minor * 10.");
  m.def(
      "load_libraries", &ccamerge::cuda::load_libraries, py::arg("cublas"), py::arg("cusolver"),
      "Loads cuBLAS and cuSOLVER from the first candidate that serves; RuntimeError if none does.");
  ccamerge::bind::register_cuda_moments(m);
  ccamerge::bind::register_cuda_solve(m);
}
