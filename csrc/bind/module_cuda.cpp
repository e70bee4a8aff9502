// The CUDA module. Importing it needs no driver; asking it for devices does.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/device.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA backend of ccamerge.";
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
}
