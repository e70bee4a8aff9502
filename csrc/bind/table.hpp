// What the moments on the CPU and those on a device show Python of their blocks, and how both read
// features, masks and saved states.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "array.hpp"
#include "common/block_table.hpp"
#include "errors.hpp"

namespace ccamerge::bind {

using Array = pybind11::array_t<double, pybind11::array::c_style | pybind11::array::forcecast>;

Pairs pairs_from(const std::string& name);  // throws std::invalid_argument
const char* name_of(Pairs pairs);

// "(3, 4)", as Python writes it.
std::string text(const std::vector<std::int64_t>& shape);

// Borrows an update's arrays into owners and checks that they fit the table and each other.
// `device` as for borrow_features.
std::vector<FeatureView> borrow_models(const BlockTable& table, const pybind11::sequence& features,
                                       const std::vector<std::int64_t>& axes, int device,
                                       std::vector<pybind11::object>& owners);

// Throws std::invalid_argument unless a mask of this shape selects among the samples of a view.
void check_mask(const std::vector<std::int64_t>& shape, const FeatureView& view);

// Throws std::invalid_argument unless `axes` names some.
void check_axes(const std::vector<std::int64_t>& axes);

// A saved state, checked against the table; m2 in the table's order, borrowed from the arrays.
struct State {
  Vectors vectors;
  std::vector<const double*> m2;
};
State checked_state(const BlockTable& table, std::int64_t count, const std::vector<Array>& means,
                    const std::vector<Array>& shifts, const std::vector<Array>& blocks);

Array vector_array(const std::vector<double>& values);

// (count, means, shifts, blocks), of which `read(m2)` returns the vectors and fills the blocks, in
// the table's order.
template <class Read>
pybind11::tuple state_of(const BlockTable& table, Read&& read) {
  std::vector<Array> blocks;
  std::vector<double*> m2;
  for (const auto& [row, column] : table.blocks()) {
    blocks.emplace_back(std::vector<pybind11::ssize_t>{table.dim(row), table.dim(column)});
    m2.push_back(blocks.back().mutable_data());
  }
  const Vectors vectors = without_gil([&] { return read(m2); });
  std::vector<Array> means, shifts;
  for (const auto& values : vectors.means) means.push_back(vector_array(values));
  for (const auto& values : vectors.shifts) shifts.push_back(vector_array(values));
  return pybind11::make_tuple(vectors.count, means, shifts, blocks);
}

// Declares what a class of moments with a table() has of it.
template <class M, class... Options>
void register_table(pybind11::class_<M, Options...>& cls) {
  namespace py = pybind11;
  cls.def_property_readonly(
         "dims", [](const M& self) { return self.table().dims(); }, "Features of each model.")
      .def_property_readonly(
          "pairs", [](const M& self) { return name_of(self.table().pairs()); },
          "Which cross blocks are collected.")
      .def_property_readonly(
          "reference", [](const M& self) { return self.table().reference(); },
          "The reference model's index.")
      .def(
          "has", [](const M& self, int row, int column) { return self.table().has(row, column); },
          py::arg("row"), py::arg("column"), "Whether the block is collected.")
      .def(
          "block_pairs", [](const M& self) { return self.table().blocks(); },
          "The collected blocks, (row, column).");
}

}  // namespace ccamerge::bind
