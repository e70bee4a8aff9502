#include "array.hpp"

#include <string>

#include "common/check.hpp"
#include "dlpack.h"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

py::type_error type_error(const std::string& message) { return py::type_error(message); }

// Throws std::invalid_argument unless the array is where it should be. An emulated device has its
// memory on the host.
void check_place(const py::handle& array, const std::string& name, int device) {
  const auto place = py::tuple(array.attr("__dlpack_device__")());
  const int type = py::int_(place[0]).cast<int>(), id = py::int_(place[1]).cast<int>();
#ifdef CCAMERGE_EMULATED
  const bool host = true;
#else
  const bool host = device == kHost;
#endif
  if (host ? type == 1 || type == 3 : type == 2 && id == device) return;
  if (host) {
    throw std::invalid_argument(format_message(
        name, " must be in CPU memory, got DLPack device type ", type, "; move them with .cpu()"));
  }
  throw std::invalid_argument(format_message(name, " must be on CUDA device ", device,
                                             ", got DLPack device (", type, ", ", id, ")"));
}

// A newer protocol is asked for first: NumPy exports read-only arrays only with it. Producers of
// the old protocol do not know the keyword. On a device the stream is the producer's own, so that
// there is nothing to wait for: -1 says so.
py::object export_capsule(const py::handle& array, const std::string& name, int device) {
  if (!py::hasattr(array, "__dlpack__") || !py::hasattr(array, "__dlpack_device__")) {
    throw type_error(format_message(name, " must be an array with __dlpack__ (NumPy, torch, ...), ",
                                    "got ",
                                    std::string(py::str(py::type::of(array).attr("__name__")))));
  }
  check_place(array, name, device);
  const py::object method = array.attr("__dlpack__");
  py::dict keywords;
#ifndef CCAMERGE_EMULATED
  if (device != kHost) keywords["stream"] = -1;
#endif
  try {
    try {
      return method(py::arg("max_version") = py::make_tuple(1, 0), **keywords);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      return method(**keywords);
    }
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_BufferError) && !error.matches(PyExc_TypeError)) throw;
    const std::string reason = py::str(error.value());
    py::raise_from(error, PyExc_TypeError,
                   format_message(name, " cannot be read through DLPack: ", reason).c_str());
    throw py::error_already_set();
  }
}

const DLTensor& tensor_in(const py::object& capsule, const std::string& name) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major == 1) return managed->dl_tensor;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    return static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))
        ->dl_tensor;
  }
  throw type_error(name + ": __dlpack__ returned no DLPack 0 or 1 capsule");
}

DType dtype_of(const BorrowedTensor& array, const std::string& name) {
  if (array.code == kDLFloat) {
    if (array.bits == 16) return DType::float16;
    if (array.bits == 32) return DType::float32;
    if (array.bits == 64) return DType::float64;
  }
  if (array.code == kDLBfloat && array.bits == 16) return DType::bfloat16;
  static const char* const names[] = {"int",    "uint",    "float", "opaque",
                                      "bfloat", "complex", "bool"};
  throw type_error(format_message(name, " must be float16, bfloat16, float32 or float64, got ",
                                  array.code < 7 ? names[array.code] : "type", array.bits));
}

}  // namespace

bool BorrowedTensor::contiguous() const {
  std::int64_t expected = 1;
  for (std::size_t a = shape.size(); a-- > 0; expected *= shape[a]) {
    if (shape[a] != 1 && strides[a] != expected) return false;
  }
  return true;
}

BorrowedTensor borrow_tensor(const py::handle& array, const std::string& name, int device) {
  BorrowedTensor result;
  result.owner = export_capsule(array, name, device);
  const DLTensor& tensor = tensor_in(result.owner, name);
  if (tensor.dtype.lanes != 1) throw type_error(name + " must not have a vector dtype");
  result.data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  result.code = tensor.dtype.code;
  result.bits = tensor.dtype.bits;
  const auto ndim = static_cast<std::size_t>(tensor.ndim);
  result.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  result.strides.resize(ndim);
  std::int64_t contiguous = 1;
  for (std::size_t a = ndim; a-- > 0;) {
    result.strides[a] = tensor.strides ? tensor.strides[a] : contiguous;
    contiguous *= tensor.shape[a];
  }
  const auto item = static_cast<std::uintptr_t>(result.bits) / 8;
  const bool any = contiguous != 0 && item > 0;
  if (any && reinterpret_cast<std::uintptr_t>(result.data) % item != 0) {
    throw std::invalid_argument(format_message(name, " must be aligned in memory to the ", item,
                                               " bytes of an element; copy() is"));
  }
  return result;
}

BorrowedArray borrow_features(const py::handle& array, const std::vector<std::int64_t>& axes,
                              std::size_t model, int device) {
  const std::string name = format_message("features of model ", model);
  BorrowedTensor tensor = borrow_tensor(array, name, device);
  BorrowedArray result;
  FeatureView& view = result.view;
  view.dtype = dtype_of(tensor, name);
  view.data = tensor.data;
  const std::size_t ndim = tensor.shape.size();
  if (ndim <= axes.size()) {
    throw std::invalid_argument(format_message(
        name, " must have at least ",
        axes.size() == 1 ? "two axes (samples and features)"
                         : format_message(axes.size() + 1, " axes (samples and features)"),
        ", got ", ndim));
  }
  std::vector<bool> taken(ndim);
  for (const std::int64_t axis : axes) {
    const std::int64_t at = axis < 0 ? axis + static_cast<std::int64_t>(ndim) : axis;
    if (at < 0 || at >= static_cast<std::int64_t>(ndim)) {
      throw std::invalid_argument(format_message("axis ", axis, " is out of range for model ",
                                                 model, ", whose features have ", ndim, " axes"));
    }
    const auto a = static_cast<std::size_t>(at);
    if (taken[a]) {
      throw std::invalid_argument(
          format_message("axis ", axis, " is named twice for model ", model));
    }
    taken[a] = true;
    view.feature_shape.push_back(tensor.shape[a]);
    view.feature_strides.push_back(tensor.strides[a]);
  }
  for (std::size_t a = 0; a < ndim; ++a) {
    if (taken[a]) continue;
    view.sample_shape.push_back(tensor.shape[a]);
    view.sample_strides.push_back(tensor.strides[a]);
  }
  result.owner = std::move(tensor.owner);
  return result;
}

}  // namespace ccamerge::bind
