#include "device_memory.hpp"

#include <memory>

#include "common/check.hpp"
#include "dlpack.h"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

// Python objects die with the GIL held, from wherever their last owner lets go.
template <class T>
std::shared_ptr<T> kept(T object) {
  return {new T(std::move(object)), [](T* p) {
            const py::gil_scoped_acquire acquire;
            delete p;
          }};
}

}  // namespace

cuda::Allocate allocator_of(py::object callable) {
  return [callable = kept(std::move(callable))](std::size_t bytes) {
    const py::gil_scoped_acquire acquire;
    py::object memory = (*callable)(bytes);
    cuda::Buffer buffer;
    buffer.data =
        reinterpret_cast<std::byte*>(memory.attr("data_ptr")().cast<std::uintptr_t>());  // NOLINT
    buffer.bytes = bytes;
    buffer.owner = kept(std::move(memory));
    return buffer;
  };
}

py::object memory_of(const cuda::Buffer& buffer) {
  return *static_cast<const py::object*>(buffer.owner.get());
}

BorrowedTensor borrow_doubles(const py::handle& array, std::size_t axes, const std::string& name,
                              int device) {
  BorrowedTensor tensor = borrow_tensor(array, name, device);
  if (tensor.code != kDLFloat || tensor.bits != 64) {
    throw py::type_error(name + " must be float64");
  }
  if (tensor.shape.size() != axes || !tensor.contiguous()) {
    throw std::invalid_argument(format_message(name, " must have ", axes, " axes, in C order"));
  }
  return tensor;
}

}  // namespace ccamerge::bind
