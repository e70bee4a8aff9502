// Batched solves on the CPU, NumPy arrays in and out. Results own their memory.
#include <pybind11/numpy.h>

#include <cstdlib>

#include "cpu/solve/instances.hpp"
#include "errors.hpp"
#include "solve.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

struct CpuSide {
  using Backend = Cpu;
  using Array = py::array_t<double, py::array::c_style>;

  static ConstView view_of(const Array& a) {
    if (a.ndim() != 2) throw std::invalid_argument("expected a 2-D array");
    return transposed_view(a.data(), a.shape(0), a.shape(1));
  }

  static py::object array_of(Matrix m, const std::vector<py::ssize_t>& shape) {
    const py::capsule owner(m.data(), [](void* p) { std::free(p); });
    return Array(shape, m.release(), owner);
  }

  template <class Compute>
  auto run(Compute&& compute) {
    return without_gil([&] {
      Cpu cpu;
      return compute(cpu);
    });
  }

  template <class Result, class... Arguments>
  static auto wrap(Result (*function)(CpuSide&, Arguments...)) {
    return [function](Arguments... arguments) {
      CpuSide side;
      return function(side, std::forward<Arguments>(arguments)...);
    };
  }

  static std::tuple<> extras() { return {}; }
};

}  // namespace

void register_solve(py::module_& m) { SolveBindings<CpuSide>::add_to(m); }

}  // namespace ccamerge::bind
