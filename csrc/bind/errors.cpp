#include "errors.hpp"

namespace py = pybind11;

namespace ccamerge::bind {

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

}  // namespace ccamerge::bind
