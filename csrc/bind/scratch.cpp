// Where the core keeps totals that are large.
#include "common/scratch.hpp"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace ccamerge::bind {

void register_scratch(py::module_& m) {
  m.def("set_scratch", &set_scratch, py::arg("folder"), py::arg("bytes"),
        "Have moments made from now on keep blocks of at least so many bytes in files of a folder; "
        "an empty folder means memory.");
}

}  // namespace ccamerge::bind
