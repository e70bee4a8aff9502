// Batched solves for Python. Arguments come converted and shape-checked from ccamerge/solve.py:
// float64, C order. Results own their memory; a C-order array is the transpose of the core's.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/instances.hpp"
#include "errors.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

using Array = py::array_t<double, py::array::c_style>;

// The transpose of a 2-D C-order array.
ConstView view_of(const Array& a) {
  if (a.ndim() != 2) throw std::invalid_argument("expected a 2-D array");
  if (a.shape(0) < 1 || a.shape(1) < 1 || a.shape(0) > std::numeric_limits<int>::max() ||
      a.shape(1) > std::numeric_limits<int>::max()) {
    throw std::invalid_argument("expected a matrix with 1 to 2^31 - 1 rows and columns");
  }
  const int rows = static_cast<int>(a.shape(1)), cols = static_cast<int>(a.shape(0));
  return {a.data(), rows, cols, rows};
}

py::array owned(Matrix& m, std::vector<py::ssize_t> shape) {
  const py::capsule owner(m.data(), [](void* p) { std::free(p); });
  return Array(std::move(shape), m.release(), owner);
}

// As the transpose; None for an empty matrix, which stands for one not asked for.
py::object array_of(Matrix m) {
  if (m.empty()) return py::none();
  return owned(m, {m.cols(), m.rows()});
}

// A column, as a 1-D array.
py::object vector_of(Matrix m) {
  if (m.empty()) return py::none();
  return owned(m, {m.rows()});
}

const char* name_of(PolarMethod method) { return method == PolarMethod::qdwh ? "qdwh" : "svd"; }

std::vector<Regulariser> regularisers_of(const std::vector<double>& values, bool absolute) {
  std::vector<Regulariser> out;
  for (const double value : values) out.push_back({value, absolute});
  return out;
}

py::tuple tuple_of(CcaSolution<Cpu> s) {
  return py::make_tuple(array_of(std::move(s.map)), array_of(std::move(s.inverse)),
                        vector_of(std::move(s.correlations)), array_of(std::move(s.x_weights)),
                        array_of(std::move(s.y_weights)), s.rank, s.x_condition, s.y_condition,
                        name_of(s.method));
}

py::list solve_cca_batch(const std::vector<std::tuple<Array, Array, Array>>& arrays,
                         const std::vector<std::string>& names, const std::vector<double>& values,
                         bool absolute, bool correlations, bool weights) {
  std::vector<CcaProblem> problems;
  for (const auto& [sxx, syy, sxy] : arrays) {
    problems.push_back({view_of(sxx), view_of(syy), view_of(sxy)});
  }
  auto solutions = without_gil([&] {
    Cpu cpu;
    return solve_cca(cpu, problems, names, regularisers_of(values, absolute),
                     {correlations, weights});
  });
  py::list out;
  for (auto& solution : solutions) out.append(tuple_of(std::move(solution)));
  return out;
}

py::list polar_batch(const std::vector<Array>& arrays, const std::vector<std::string>& names) {
  std::vector<ConstView> views;
  for (const Array& a : arrays) views.push_back(view_of(a));
  auto factors = without_gil([&] {
    Cpu cpu;
    return solve_polar(cpu, views, names);
  });
  py::list out;
  for (auto& f : factors) {
    out.append(py::make_tuple(array_of(std::move(f.q)), f.rank, name_of(f.method)));
  }
  return out;
}

py::tuple whiten_one(const Array& s, double value, bool absolute, bool symmetric,
                     const std::string& name) {
  const ConstView view = view_of(s);
  const WhiteningKind kind = symmetric ? WhiteningKind::symmetric : WhiteningKind::cholesky;
  Whitening<Cpu> w = without_gil([&] {
    Cpu cpu;
    auto out = whiten(cpu, {view}, {value, absolute}, kind, {name});
    if (kind == WhiteningKind::cholesky) out.w = transpose_of(cpu, out.w.view());
    return out;
  });
  return py::make_tuple(array_of(std::move(w.w)), w.conditions.front());
}

py::list solve_gevp_batch(const std::vector<std::tuple<Array, Array, int>>& arrays,
                          const std::vector<std::string>& names, double value, bool absolute) {
  std::vector<GevpProblem> problems;
  for (const auto& [a, b, k] : arrays) problems.push_back({view_of(a), view_of(b), k});
  auto solutions = without_gil([&] {
    Cpu cpu;
    return solve_gevp(cpu, problems, names, {value, absolute});
  });
  py::list out;
  for (auto& s : solutions) {
    out.append(py::make_tuple(vector_of(std::move(s.values)), array_of(std::move(s.vectors))));
  }
  return out;
}

py::list list_of(std::vector<Matrix> matrices) {
  py::list out;
  for (Matrix& m : matrices) out.append(array_of(std::move(m)));
  return out;
}

// Of a problem: own, crosses, weights, and the regulariser's value or None for no whitening.
using UniverseArrays =
    std::tuple<std::vector<Array>, std::vector<Array>, std::vector<double>, std::optional<double>>;

py::list solve_universe_batch(const std::vector<UniverseArrays>& arrays,
                              const std::vector<std::string>& names, bool absolute, int reference,
                              double tolerance, int sweeps) {
  std::vector<UniverseProblem> problems;
  for (const auto& [own, crosses, weights, value] : arrays) {
    UniverseProblem problem{{}, {}, weights, std::nullopt};
    for (const Array& s : own) problem.own.push_back(view_of(s));
    for (const Array& s : crosses) problem.crosses.push_back(view_of(s));
    if (value) problem.regulariser = Regulariser{*value, absolute};
    problems.push_back(std::move(problem));
  }
  const UniverseOptions options{reference, tolerance, sweeps};
  auto solutions = without_gil([&] {
    Cpu cpu;
    return solve_universe(cpu, problems, names, options);
  });
  py::list out;
  for (auto& s : solutions) {
    out.append(py::make_tuple(list_of(std::move(s.maps)), list_of(std::move(s.inverses)),
                              s.objectives, s.conditions, s.rank, s.spectral, s.converged));
  }
  return out;
}

}  // namespace

void register_solve(py::module_& m) {
  m.def("solve_cca_batch", &solve_cca_batch, py::arg("problems"), py::arg("names"),
        py::arg("values"), py::arg("absolute"), py::arg("correlations"), py::arg("weights"));
  m.def("polar_batch", &polar_batch, py::arg("matrices"), py::arg("names"));
  m.def("whiten", &whiten_one, py::arg("s"), py::arg("value"), py::arg("absolute"),
        py::arg("symmetric"), py::arg("name"));
  m.def("solve_gevp_batch", &solve_gevp_batch, py::arg("problems"), py::arg("names"),
        py::arg("value"), py::arg("absolute"));
  m.def("solve_universe_batch", &solve_universe_batch, py::arg("problems"), py::arg("names"),
        py::arg("absolute"), py::arg("reference"), py::arg("tolerance"), py::arg("sweeps"));
}

}  // namespace ccamerge::bind
