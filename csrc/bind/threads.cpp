#include "threads.hpp"

#include "common/parallel.hpp"
#include "common/team.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

int num_threads() {
  follow_torch();
  return ccamerge::num_threads();
}

const char* num_threads_reason() {
  follow_torch();
  return thread_limit().source;
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
  follow_torch_threads(count);
}

void register_threads(py::module_& m) {
  usable_threads();  // its settings as they are when the module is loaded
  m.def("num_threads", &num_threads,
        "Threads the core uses: what set_num_threads said, else the least of the cores this "
        "process may run on, its cgroup's quota, OMP_NUM_THREADS and torch's own number.");
  m.def("num_threads_reason", &num_threads_reason, "What decided num_threads().");
  m.def("runs_on_torch_threads", &torch_threads_found,
        "Whether the threads are torch's while cores are free, instead of the core's own.");
  m.attr("most_threads") = kMostThreads;
  m.def("set_num_threads", &set_num_threads, py::arg("count"),
        "Sets the number of threads, in 1..most_threads.");
}

}  // namespace ccamerge::bind
