// Python's view of the moments: checks, borrows arrays, releases the GIL, calls.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "array.hpp"
#include "errors.hpp"
#include "kernels.hpp"
#include "moments.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

Pairs pairs_from(const std::string& name) {
  if (name == "none") return Pairs::none;
  if (name == "reference") return Pairs::reference;
  if (name == "all") return Pairs::all;
  throw std::invalid_argument("pairs must be \"reference\", \"all\" or \"none\", got \"" + name +
                              "\"");
}

const char* name_of(Pairs pairs) {
  return pairs == Pairs::none ? "none" : pairs == Pairs::reference ? "reference" : "all";
}

std::string text(const std::vector<std::int64_t>& shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + (shape.size() == 1 ? ",)" : ")");
}

using Mask = py::array_t<bool, py::array::c_style>;

// Borrows one update's arrays into owners and checks that they fit the accumulator and each other.
Update borrow_update(Moments& moments, const py::sequence& features,
                     const std::vector<std::int64_t>& axes, const std::optional<Mask>& mask,
                     std::vector<py::object>& owners) {
  Update update{&moments, {}, nullptr};
  if (features.size() != moments.dims().size()) {
    throw std::invalid_argument(format_message("features must hold one array for each of ",
                                               moments.dims().size(), " models, got ",
                                               features.size()));
  }
  for (std::size_t i = 0; i < features.size(); ++i) {
    BorrowedArray array = borrow_features(features[i], axes, i);
    owners.push_back(std::move(array.owner));
    if (array.view.features() != moments.dims()[i]) {
      throw std::invalid_argument(format_message(
          "features of model ", i, " must have ", moments.dims()[i], " features on ",
          axes.size() == 1 ? "axis " + std::to_string(axes[0]) : "axes " + text(axes), ", got ",
          array.view.features()));
    }
    update.features.push_back(std::move(array.view));
    const auto& shape = update.features[i].sample_shape;
    if (shape != update.features[0].sample_shape) {
      throw std::invalid_argument(format_message(
          "features of model ", i, " have sample axes ", text(shape), ", but model 0 has ",
          text(update.features[0].sample_shape), "; all models must see the same samples"));
    }
  }
  if (mask) {
    const std::vector<std::int64_t> shape(mask->shape(), mask->shape() + mask->ndim());
    const std::int64_t samples = update.features[0].samples();
    if (shape != update.features[0].sample_shape && shape != std::vector<std::int64_t>{samples}) {
      throw std::invalid_argument("mask must have the sample axes' shape " +
                                  text(update.features[0].sample_shape) + " or be flat (" +
                                  std::to_string(samples) + ",), got " + text(shape));
    }
    update.mask = reinterpret_cast<const std::uint8_t*>(mask->data());
  }
  return update;
}

using Item = std::pair<Moments*, py::sequence>;

void update_many(const std::vector<Item>& items, const std::vector<std::int64_t>& axes,
                 const std::optional<Mask>& mask) {
  if (axes.empty()) throw std::invalid_argument("axis must name at least one axis, got none");
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

using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;

Array vector_array(const std::vector<double>& values) {
  return Array(static_cast<py::ssize_t>(values.size()), values.data());
}

template <class Fill>
Array matrix_array(const Moments& moments, int row, int column, Fill&& fill) {
  for (const int model : {row, column}) {
    if (model < 0 || model >= moments.models()) {
      throw std::invalid_argument(
          format_message("model index must be from 0 to ", moments.models() - 1, ", got ", model));
    }
  }
  Array out({moments.dims()[row], moments.dims()[column]});
  double* const data = out.mutable_data();
  without_gil([&] { fill(data); });
  return out;
}

std::vector<double> checked_vector(const Array& array, std::int64_t size, const std::string& name) {
  if (array.ndim() != 1 || array.shape(0) != size) {
    throw std::invalid_argument(name + " must have shape (" + std::to_string(size) + ",)");
  }
  return {array.data(), array.data() + size};
}

void restore(Moments& moments, std::int64_t count, const std::vector<Array>& means,
             const std::vector<Array>& shifts, const std::vector<Array>& blocks) {
  const auto pairs = moments.block_pairs();
  const std::size_t models = moments.dims().size();
  if (count < 0) throw std::invalid_argument("count must not be negative");
  if (means.size() != models || shifts.size() != models || blocks.size() != pairs.size()) {
    throw std::invalid_argument("state does not fit these moments");
  }
  std::vector<std::vector<double>> mean, shift;
  for (std::size_t i = 0; i < models; ++i) {
    mean.push_back(checked_vector(means[i], moments.dims()[i], "mean." + std::to_string(i)));
    shift.push_back(checked_vector(shifts[i], moments.dims()[i], "shift." + std::to_string(i)));
  }
  std::vector<const double*> m2;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const std::int64_t rows = moments.dims()[pairs[b].first],
                       columns = moments.dims()[pairs[b].second];
    if (blocks[b].ndim() != 2 || blocks[b].shape(0) != rows || blocks[b].shape(1) != columns) {
      throw std::invalid_argument(format_message("m2.", pairs[b].first, ".", pairs[b].second,
                                                 " must have shape (", rows, ", ", columns, ")"));
    }
    m2.push_back(blocks[b].data());
  }
  without_gil([&] { moments.restore(count, std::move(mean), std::move(shift), m2); });
}

std::vector<std::string> available_kernels() {
  std::size_t count = 0;
  const char* const* names = kernel_names(&count);
  return {names, names + count};
}

}  // namespace

void register_moments(py::module_& m) {
  py::class_<Moments>(m, "Moments", "Streamed count, means and second moments of models' features.")
      .def(py::init([](std::vector<std::int64_t> dims, const std::string& pairs, int reference) {
             return std::make_unique<Moments>(std::move(dims), pairs_from(pairs), reference);
           }),
           py::arg("dims"), py::arg("pairs"), py::arg("reference"))
      .def_property_readonly("dims", &Moments::dims, "Features of each model.")
      .def_property_readonly(
          "pairs", [](const Moments& self) { return name_of(self.pairs()); },
          "Which cross blocks are collected.")
      .def_property_readonly("reference", &Moments::reference, "The reference model's index.")
      .def(
          "count", [](const Moments& self) { return without_gil([&] { return self.count(); }); },
          "Samples seen.")
      .def(
          "mean",
          [](const Moments& self, int model) {
            return vector_array(without_gil([&] { return self.mean(model); }));
          },
          py::arg("model"), "Mean, (d,).")
      .def(
          "shift",
          [](const Moments& self, int model) {
            return vector_array(without_gil([&] { return self.shift(model); }));
          },
          py::arg("model"), "What is subtracted before multiplying, (d,).")
      .def(
          "covariance",
          [](const Moments& self, int row, int column) {
            return matrix_array(self, row, column,
                                [&](double* out) { self.covariance(row, column, out); });
          },
          py::arg("row"), py::arg("column"), "Second central moment over count, (d_row, d_column).")
      .def(
          "second_moment",
          [](const Moments& self, int row, int column) {
            return matrix_array(self, row, column,
                                [&](double* out) { self.second_moment(row, column, out); });
          },
          py::arg("row"), py::arg("column"), "Centred second moment, not divided.")
      .def("has", &Moments::has, py::arg("row"), py::arg("column"),
           "Whether the block is collected.")
      .def("block_pairs", &Moments::block_pairs, "The collected blocks, (row, column).")
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
