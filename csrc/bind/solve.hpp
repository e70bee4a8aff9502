// Batched solves for Python, on whichever side. Arguments come converted and shape-checked from
// ccamerge/core: float64, C order. A C-order array is the transpose of what the solvers see, so
// transposes are handed over and taken back instead of copies.
//
// A Side says where: its Array is what Python hands over, view_of() borrows one, array_of() makes
// Python's of a result, and run(compute) calls compute(backend) without the GIL. wrap() makes a
// function of a Side one for Python, with what else the Side needs as last arguments, whose names
// are extras().
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "solve/solvers.hpp"

namespace ccamerge::bind {

// The transpose of a contiguous (rows, cols) array.
inline ConstView transposed_view(const double* data, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t most = std::numeric_limits<int>::max();
  if (rows < 1 || cols < 1 || rows > most || cols > most) {
    throw std::invalid_argument("expected a matrix with 1 to 2^31 - 1 rows and columns");
  }
  return {data, static_cast<int>(cols), static_cast<int>(rows), static_cast<int>(cols)};
}

template <class Side>
class SolveBindings {
  using Array = typename Side::Array;
  using Backend = typename Side::Backend;
  using Matrix = typename Backend::Matrix;
  using Names = std::vector<std::string>;

 public:
  static void add_to(pybind11::module_& m) {
    namespace py = pybind11;
    const auto def = [&m](const char* name, auto function, auto... arguments) {
      std::apply(
          [&](auto... extras) { m.def(name, Side::wrap(function), arguments..., extras...); },
          Side::extras());
    };
    def("solve_cca_batch", &cca, py::arg("problems"), py::arg("names"), py::arg("values"),
        py::arg("absolute"), py::arg("correlations"), py::arg("weights"));
    def("polar_batch", &polar, py::arg("matrices"), py::arg("names"));
    def("whiten", &whitening, py::arg("s"), py::arg("value"), py::arg("absolute"),
        py::arg("symmetric"), py::arg("name"));
    def("solve_gevp_batch", &gevp, py::arg("problems"), py::arg("names"), py::arg("value"),
        py::arg("absolute"));
    def("solve_universe_batch", &universe, py::arg("problems"), py::arg("names"),
        py::arg("absolute"), py::arg("reference"), py::arg("tolerance"), py::arg("sweeps"));
  }

 private:
  // As the transpose; None for an empty matrix, which stands for one not asked for.
  static pybind11::object array_of(Matrix m) {
    if (m.empty()) return pybind11::none();
    const std::vector<pybind11::ssize_t> shape{m.cols(), m.rows()};
    return Side::array_of(std::move(m), shape);
  }
  // A column, as a 1-D array.
  static pybind11::object vector_of(Matrix m) {
    if (m.empty()) return pybind11::none();
    const std::vector<pybind11::ssize_t> shape{m.rows()};
    return Side::array_of(std::move(m), shape);
  }
  static pybind11::list list_of(std::vector<Matrix> matrices) {
    pybind11::list out;
    for (Matrix& m : matrices) out.append(array_of(std::move(m)));
    return out;
  }
  static const char* name_of(PolarMethod method) {
    return method == PolarMethod::qdwh ? "qdwh" : "svd";
  }

  static pybind11::list cca(Side& side, const std::vector<std::tuple<Array, Array, Array>>& arrays,
                            const Names& names, const std::vector<double>& values, bool absolute,
                            bool correlations, bool weights) {
    std::vector<CcaProblem> problems;
    for (const auto& [sxx, syy, sxy] : arrays) {
      problems.push_back({side.view_of(sxx), side.view_of(syy), side.view_of(sxy)});
    }
    std::vector<Regulariser> regularisers;
    for (const double value : values) regularisers.push_back({value, absolute});
    auto solutions = side.run([&](Backend& b) {
      return solve_cca(b, problems, names, regularisers, {correlations, weights});
    });
    pybind11::list out;
    for (auto& s : solutions) {
      out.append(pybind11::make_tuple(array_of(std::move(s.map)), array_of(std::move(s.inverse)),
                                      vector_of(std::move(s.correlations)),
                                      array_of(std::move(s.x_weights)),
                                      array_of(std::move(s.y_weights)), s.rank, s.x_condition,
                                      s.y_condition, name_of(s.method)));
    }
    return out;
  }

  static pybind11::list polar(Side& side, const std::vector<Array>& arrays, const Names& names) {
    std::vector<ConstView> views;
    for (const Array& a : arrays) views.push_back(side.view_of(a));
    auto factors = side.run([&](Backend& b) { return solve_polar(b, views, names); });
    pybind11::list out;
    for (auto& f : factors) {
      out.append(pybind11::make_tuple(array_of(std::move(f.q)), f.rank, name_of(f.method)));
    }
    return out;
  }

  static pybind11::tuple whitening(Side& side, const Array& s, double value, bool absolute,
                                   bool symmetric, const std::string& name) {
    const ConstView view = side.view_of(s);
    const WhiteningKind kind = symmetric ? WhiteningKind::symmetric : WhiteningKind::cholesky;
    auto w = side.run([&](Backend& b) {
      auto out = whiten(b, {view}, {value, absolute}, kind, {name});
      if (kind == WhiteningKind::cholesky) out.w = transpose_of(b, out.w.view());
      return out;
    });
    return pybind11::make_tuple(array_of(std::move(w.w)), w.conditions.front());
  }

  static pybind11::list gevp(Side& side, const std::vector<std::tuple<Array, Array, int>>& arrays,
                             const Names& names, double value, bool absolute) {
    std::vector<GevpProblem> problems;
    for (const auto& [left, right, k] : arrays) {
      problems.push_back({side.view_of(left), side.view_of(right), k});
    }
    auto solutions = side.run(
        [&](Backend& b) { return solve_gevp(b, problems, names, Regulariser{value, absolute}); });
    pybind11::list out;
    for (auto& s : solutions) {
      out.append(
          pybind11::make_tuple(vector_of(std::move(s.values)), array_of(std::move(s.vectors))));
    }
    return out;
  }

  // Of a problem: own, crosses, weights, and the regulariser's value or None for no whitening.
  using UniverseArrays = std::tuple<std::vector<Array>, std::vector<Array>, std::vector<double>,
                                    std::optional<double>>;

  static pybind11::list universe(Side& side, const std::vector<UniverseArrays>& arrays,
                                 const Names& names, bool absolute, int reference, double tolerance,
                                 int sweeps) {
    std::vector<UniverseProblem> problems;
    for (const auto& [own, crosses, weights, value] : arrays) {
      UniverseProblem problem{{}, {}, weights, std::nullopt};
      for (const Array& s : own) problem.own.push_back(side.view_of(s));
      for (const Array& s : crosses) problem.crosses.push_back(side.view_of(s));
      if (value) problem.regulariser = Regulariser{*value, absolute};
      problems.push_back(std::move(problem));
    }
    const UniverseOptions options{reference, tolerance, sweeps};
    auto solutions =
        side.run([&](Backend& b) { return solve_universe(b, problems, names, options); });
    pybind11::list out;
    for (auto& s : solutions) {
      out.append(pybind11::make_tuple(list_of(std::move(s.maps)), list_of(std::move(s.inverses)),
                                      s.objectives, s.conditions, s.rank, s.spectral, s.converged));
    }
    return out;
  }
};

}  // namespace ccamerge::bind
