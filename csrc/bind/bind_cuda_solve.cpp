// Batched solves on a device. Matrices come as anything with __dlpack__; results are (memory,
// offset in bytes, shape) in memory that the caller's allocator made.
#include "cuda/solve/instances.hpp"
#include "device_memory.hpp"
#include "errors.hpp"
#include "solve.hpp"

namespace py = pybind11;

namespace ccamerge::bind {
namespace {

class CudaSide {
 public:
  using Backend = cuda::Gpu;
  using Array = py::object;

  CudaSide(py::object allocate, int device, std::uintptr_t stream)
      : allocate_(allocator_of(std::move(allocate))), device_(device), stream_(stream_of(stream)) {}

  ConstView view_of(const py::object& array) {
    borrowed_.push_back(borrow_doubles(array, 2, "a matrix", device_));
    const BorrowedTensor& own = borrowed_.back();
    return transposed_view(reinterpret_cast<const double*>(own.data), own.shape[0], own.shape[1]);
  }

  static py::object array_of(cuda::Stack m, const std::vector<py::ssize_t>& shape) {
    return py::make_tuple(memory_of(m.memory()), m.offset(), py::tuple(py::cast(shape)));
  }

  template <class Compute>
  auto run(Compute&& compute) {
    return without_gil([&] {
      const cuda::DeviceGuard guard(device_);
      cuda::Gpu gpu(allocate_, stream_);
      return compute(gpu);
    });
  }

  template <class Result, class... Arguments>
  static auto wrap(Result (*function)(CudaSide&, Arguments...)) {
    return
        [function](Arguments... arguments, py::object allocate, int device, std::uintptr_t stream) {
          CudaSide side(std::move(allocate), device, stream);
          return function(side, std::forward<Arguments>(arguments)...);
        };
  }

  static auto extras() {
    return std::make_tuple(py::arg("allocate"), py::arg("device"), py::arg("stream"));
  }

 private:
  cuda::Allocate allocate_;
  int device_;
  cudaStream_t stream_;
  std::vector<BorrowedTensor> borrowed_;
};

}  // namespace

void register_cuda_solve(py::module_& m) { SolveBindings<CudaSide>::add_to(m); }

}  // namespace ccamerge::bind
