#include "threads.hpp"

#include <string>
#include <utility>

#include "check.hpp"
#include "parallel.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

int num_threads() {
  follow_torch();
  return ccamerge::num_threads();
}

void set_num_threads(const py::object& count) {
  const bool integer = PyIndex_Check(count.ptr()) && !PyBool_Check(count.ptr());
  if (!integer) {
    throw py::type_error("count must be an integer, got " +
                         std::string(py::str(py::type::of(count).attr("__name__"))));
  }
  const py::int_ exact = py::reinterpret_steal<py::int_>(PyNumber_Index(count.ptr()));
  if (!exact) throw py::error_already_set();
  int overflow = 0;
  const long value = PyLong_AsLongAndOverflow(exact.ptr(), &overflow);
  if (overflow != 0 || value < 1 || value > kMostThreads) {
    throw std::invalid_argument(format_message("count must be from 1 to ", kMostThreads, ", got ",
                                               std::string(py::str(exact))));
  }
  ccamerge::set_num_threads(static_cast<int>(value));
}

std::vector<std::pair<std::string, int>> thread_limits() {
  follow_torch();
  std::vector<std::pair<std::string, int>> out;
  for (auto& [source, count] : ccamerge::thread_limits("torch.get_num_threads()")) {
    out.emplace_back(std::move(source), count);
  }
  return out;
}

}  // namespace

void follow_torch() {
  static PyObject* const name = PyUnicode_InternFromString("torch");
  int count = 0;
  if (PyObject* const torch = PyImport_GetModule(name)) {
    if (PyObject* const found = PyObject_CallMethod(torch, "get_num_threads", nullptr)) {
      count = static_cast<int>(PyLong_AsLong(found));
      Py_DECREF(found);
    }
    Py_DECREF(torch);
  }
  if (PyErr_Occurred()) {  // torch is being imported
    PyErr_Clear();
    count = 0;
  }
  limit_threads(count);
}

void register_threads(py::module_& m) {
  lasting_thread_limits();  // as they are when the module is loaded
  m.def("num_threads", &num_threads,
        "Threads the core uses: what was set, else the least of OMP_NUM_THREADS, torch's number if "
        "torch is imported, the cores this process may run on and the CPU quota of its cgroup.");
  m.def("set_num_threads", &set_num_threads, py::arg("count"),
        "Sets the number of threads, from 1 to 1024; more than there are cores gain nothing.");
  m.def("thread_limits", &thread_limits,
        "What limits the number of threads, as (source, count); the smallest count decides.");
}

}  // namespace ccamerge::bind
