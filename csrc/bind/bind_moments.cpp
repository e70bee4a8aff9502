// Python's view of the moments: checks, borrows arrays, releases the GIL, calls.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "cpu/moments/kernels.hpp"
#include "cpu/moments/moments.hpp"
#include "errors.hpp"
#include "table.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

using Mask = py::array_t<bool, py::array::c_style>;

// Borrows one update's arrays into owners and checks that they fit the accumulator and each other.
Update borrow_update(Moments& moments, const py::sequence& features,
                     const std::vector<std::int64_t>& axes, const std::optional<Mask>& mask,
                     std::vector<py::object>& owners) {
  Update update{&moments, borrow_models(moments.table(), features, axes, kHost, owners), nullptr};
  if (mask) {
    check_mask({mask->shape(), mask->shape() + mask->ndim()}, update.features[0]);
    update.mask = reinterpret_cast<const std::uint8_t*>(mask->data());
  }
  return update;
}

using Item = std::pair<Moments*, py::sequence>;

void update_many(const std::vector<Item>& items, const std::vector<std::int64_t>& axes,
                 const std::optional<Mask>& mask) {
  check_axes(axes);
  std::vector<py::object> owners;
  std::vector<Update> updates;
  for (std::size_t i = 0; i < items.size(); ++i) {
    try {
      updates.push_back(borrow_update(*items[i].first, items[i].second, axes, mask, owners));
    } catch (const std::invalid_argument& error) {
      if (items.size() == 1) throw;
      throw std::invalid_argument(format_message("update ", i, ": ", error.what()));
    }
  }
  without_gil([&] { update(updates); });
}

Array covariance(const Moments& moments, int row, int column) {
  const BlockTable& table = moments.table();
  Array out({table.dim(table.check_model(row)), table.dim(table.check_model(column))});
  double* const data = out.mutable_data();
  without_gil([&] { moments.covariance(row, column, data); });
  return out;
}

void restore(Moments& moments, std::int64_t count, const std::vector<Array>& means,
             const std::vector<Array>& shifts, const std::vector<Array>& blocks) {
  State state = checked_state(moments.table(), count, means, shifts, blocks);
  without_gil([&] { moments.restore(std::move(state.vectors), state.m2); });
}

std::vector<std::string> available_kernels() {
  std::size_t count = 0;
  const char* const* names = kernel_names(&count);
  return {names, names + count};
}

}  // namespace

void register_moments(py::module_& m) {
  py::class_<Moments> cls(m, "Moments",
                          "Streamed count, means and second moments of models' features.");
  register_table(cls);
  cls.def(py::init([](std::vector<std::int64_t> dims, const std::string& pairs, int reference) {
            return std::make_unique<Moments>(std::move(dims), pairs_from(pairs), reference);
          }),
          py::arg("dims"), py::arg("pairs"), py::arg("reference"))
      .def(
          "count", [](const Moments& self) { return without_gil([&] { return self.count(); }); },
          "Samples seen.")
      .def(
          "mean",
          [](const Moments& self, int model) {
            return vector_array(without_gil([&] { return self.mean(model); }));
          },
          py::arg("model"), "Mean, (d,).")
      .def("covariance", &covariance, py::arg("row"), py::arg("column"),
           "Second central moment over count, (d_row, d_column).")
      .def(
          "state",
          [](const Moments& self) {
            return state_of(self.table(), [&](const auto& m2) { return self.read(m2); });
          },
          "All of it at one moment: count, means, shifts and centred second moments, not divided.")
      .def(
          "merge",
          [](Moments& self, const Moments& other) { without_gil([&] { self.merge(other); }); },
          py::arg("other"), "Adds another's samples.")
      .def(
          "subset",
          [](const Moments& self, const std::vector<int>& models, const std::string& pairs,
             int reference) {
            const Pairs wanted = pairs_from(pairs);
            return without_gil(
                [&] { return std::make_unique<Moments>(self.subset(models, wanted, reference)); });
          },
          py::arg("models"), py::arg("pairs"), py::arg("reference"), "Moments of some models.")
      .def("restore", &restore, py::arg("count"), py::arg("means"), py::arg("shifts"),
           py::arg("blocks"), "Sets everything; blocks in block_pairs() order.");
  m.def("update_many", &update_many, py::arg("updates"), py::arg("axes"),
        py::arg("mask").noconvert().none(true),
        "Adds features, one sequence of arrays for each Moments; all or nothing.");
  m.def("kernel_names", &available_kernels, "Instruction sets that the inner loops can use here.");
  m.def("kernel_in_use", [] { return kernels().name; }, "The instruction set in use.");
  m.def(
      "select_kernels",
      [](const std::string& name) {
        if (!select_kernels(name.c_str())) {
          throw std::invalid_argument("no kernels named \"" + name + "\" run on this processor");
        }
      },
      py::arg("name"), "Chooses the inner loops, for tests and comparisons.");
}

}  // namespace ccamerge::bind
