// Python's view of moments on a device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "cuda/moments/moments.hpp"
#include "device_memory.hpp"
#include "dlpack.h"
#include "errors.hpp"
#include "table.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

// Moments with the allocator that they were made with.
struct DeviceMoments {
  cuda::Allocate allocate;
  std::unique_ptr<cuda::Moments> moments;

  const BlockTable& table() const { return moments->table(); }
};

Array covariance(DeviceMoments& self, int row, int column, std::uintptr_t stream) {
  const BlockTable& table = self.table();
  Array out({table.dim(table.check_model(row)), table.dim(table.check_model(column))});
  double* const data = out.mutable_data();
  without_gil(
      [&] { self.moments->covariance(row, column, data, self.allocate, stream_of(stream)); });
  return out;
}

// Device memory of a result that the caller made.
double* target(const py::handle& out, const std::vector<std::int64_t>& shape, int device,
               BorrowedTensor& borrowed) {
  borrowed = borrow_doubles(out, shape.size(), "out", device);
  if (borrowed.shape != shape) {
    throw std::invalid_argument("out must have shape " + text(shape) + ", got " +
                                text(borrowed.shape));
  }
  return reinterpret_cast<double*>(borrowed.data);
}

using Item = std::pair<DeviceMoments*, py::sequence>;

void update_many(const std::vector<Item>& items, const std::vector<std::int64_t>& axes,
                 const py::object& mask, std::uintptr_t stream, const std::string& label) {
  check_axes(axes);
  if (items.empty()) return;
  std::vector<py::object> owners;
  std::vector<cuda::Update> updates;
  BorrowedTensor selected;
  if (!mask.is_none()) {
    selected = borrow_tensor(mask, "mask", items.front().first->moments->device());
    const bool flags = selected.code == kDLBool || selected.code == kDLUInt;
    if (!flags || selected.bits != 8 || !selected.contiguous()) {
      throw py::type_error("mask must be bool, in C order");
    }
  }
  for (std::size_t i = 0; i < items.size(); ++i) {
    DeviceMoments& own = *items[i].first;
    try {
      cuda::Update update{
          own.moments.get(),
          borrow_models(own.table(), items[i].second, axes, own.moments->device(), owners),
          nullptr};
      if (!mask.is_none()) {
        check_mask(selected.shape, update.features[0]);
        update.mask = reinterpret_cast<const std::uint8_t*>(selected.data);
      }
      updates.push_back(std::move(update));
    } catch (const std::invalid_argument& error) {
      if (items.size() == 1) throw;
      throw std::invalid_argument(format_message("update ", i, ": ", error.what()));
    }
  }
  const cuda::Allocate& allocate = items.front().first->allocate;
  without_gil([&] { update(updates, label, allocate, stream_of(stream)); });
}

}  // namespace

void register_cuda_moments(py::module_& m) {
  py::class_<DeviceMoments> cls(m, "Moments",
                                "Streamed count, means and second moments of models' features.");
  register_table(cls);
  cls.def(py::init([](std::vector<std::int64_t> dims, const std::string& pairs, int reference,
                      py::object allocate, int device, std::uintptr_t stream) {
            DeviceMoments made{allocator_of(std::move(allocate)), nullptr};
            BlockTable table(std::move(dims), pairs_from(pairs), reference);
            made.moments = without_gil([&] {
              return std::make_unique<cuda::Moments>(std::move(table), made.allocate, device,
                                                     stream_of(stream));
            });
            return made;
          }),
          py::arg("dims"), py::arg("pairs"), py::arg("reference"), py::arg("allocate"),
          py::arg("device"), py::arg("stream"))
      .def_property_readonly(
          "device", [](const DeviceMoments& self) { return self.moments->device(); },
          "The device's number.")
      .def(
          "count",
          [](DeviceMoments& self, std::uintptr_t stream) {
            return without_gil([&] { return self.moments->count(stream_of(stream)); });
          },
          py::arg("stream"), "Samples seen.")
      .def(
          "mean",
          [](DeviceMoments& self, int model, std::uintptr_t stream) {
            return vector_array(
                without_gil([&] { return self.moments->mean(model, stream_of(stream)); }));
          },
          py::arg("model"), py::arg("stream"), "Mean, (d,).")
      .def("covariance", &covariance, py::arg("row"), py::arg("column"), py::arg("stream"),
           "Second central moment over count, (d_row, d_column).")
      .def(
          "state",
          [](DeviceMoments& self, std::uintptr_t stream) {
            return state_of(self.table(), [&](const auto& m2) {
              return self.moments->read(m2, self.allocate, stream_of(stream));
            });
          },
          py::arg("stream"),
          "All of it at one moment: count, means, shifts and centred second moments, not divided.")
      .def(
          "covariance_into",
          [](DeviceMoments& self, int row, int column, const py::handle& out,
             std::uintptr_t stream) {
            const BlockTable& table = self.table();
            BorrowedTensor borrowed;
            double* const to = target(
                out, {table.dim(table.check_model(row)), table.dim(table.check_model(column))},
                self.moments->device(), borrowed);
            without_gil([&] { self.moments->covariance_into(row, column, to, stream_of(stream)); });
          },
          py::arg("row"), py::arg("column"), py::arg("out"), py::arg("stream"),
          "The covariance into device memory, without waiting.")
      .def(
          "mean_into",
          [](DeviceMoments& self, int model, const py::handle& out, std::uintptr_t stream) {
            BorrowedTensor borrowed;
            double* const to = target(out, {self.table().dim(self.table().check_model(model))},
                                      self.moments->device(), borrowed);
            without_gil([&] { self.moments->mean_into(model, to, stream_of(stream)); });
          },
          py::arg("model"), py::arg("out"), py::arg("stream"),
          "The mean into device memory, without waiting.")
      .def(
          "merge",
          [](DeviceMoments& self, DeviceMoments& other, std::uintptr_t stream) {
            without_gil(
                [&] { self.moments->merge(*other.moments, self.allocate, stream_of(stream)); });
          },
          py::arg("other"), py::arg("stream"), "Adds another's samples.")
      .def(
          "subset",
          [](DeviceMoments& self, const std::vector<int>& models, const std::string& pairs,
             int reference, std::uintptr_t stream) {
            const Pairs wanted = pairs_from(pairs);
            return DeviceMoments{self.allocate, without_gil([&] {
                                   return self.moments->subset(models, wanted, reference,
                                                               self.allocate, stream_of(stream));
                                 })};
          },
          py::arg("models"), py::arg("pairs"), py::arg("reference"), py::arg("stream"),
          "Moments of some models.")
      .def(
          "restore",
          [](DeviceMoments& self, std::int64_t count, const std::vector<Array>& means,
             const std::vector<Array>& shifts, const std::vector<Array>& blocks,
             std::uintptr_t stream) {
            const State state = checked_state(self.table(), count, means, shifts, blocks);
            without_gil([&] { self.moments->restore(state.vectors, state.m2, stream_of(stream)); });
          },
          py::arg("count"), py::arg("means"), py::arg("shifts"), py::arg("blocks"),
          py::arg("stream"), "Sets everything; blocks in block_pairs() order.");
  m.def(
      "check_many",
      [](const std::vector<DeviceMoments*>& moments, std::uintptr_t stream) {
        std::vector<cuda::Moments*> natives;
        for (DeviceMoments* one : moments) natives.push_back(one->moments.get());
        if (natives.empty()) return std::vector<std::int64_t>{};
        const cuda::Allocate& allocate = moments.front()->allocate;
        return without_gil([&] { return check_all(natives, allocate, stream_of(stream)); });
      },
      py::arg("moments"), py::arg("stream"),
      "Waits once for all and returns their counts; ValueError for the first that met a value that "
      "is not finite.");
  m.def("update_many", &update_many, py::arg("items"), py::arg("axes"), py::arg("mask"),
        py::arg("stream"), py::arg("label"),
        "Adds features, one sequence of device arrays for each Moments, without waiting.");
}

}  // namespace ccamerge::bind
