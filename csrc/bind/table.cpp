#include "table.hpp"

#include "common/check.hpp"

namespace py = pybind11;

namespace ccamerge::bind {

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

std::vector<FeatureView> borrow_models(const BlockTable& table, const py::sequence& features,
                                       const std::vector<std::int64_t>& axes, int device,
                                       std::vector<py::object>& owners) {
  const auto& dims = table.dims();
  if (features.size() != dims.size()) {
    throw std::invalid_argument(format_message("features must hold one array for each of ",
                                               dims.size(), " models, got ", features.size()));
  }
  std::vector<FeatureView> views;
  for (std::size_t i = 0; i < features.size(); ++i) {
    BorrowedArray array = borrow_features(features[i], axes, i, device);
    owners.push_back(std::move(array.owner));
    if (array.view.features() != dims[i]) {
      throw std::invalid_argument(format_message(
          "features of model ", i, " must have ", dims[i], " features on ",
          axes.size() == 1 ? "axis " + std::to_string(axes[0]) : "axes " + text(axes), ", got ",
          array.view.features()));
    }
    views.push_back(std::move(array.view));
    const auto& shape = views[i].sample_shape;
    if (shape != views[0].sample_shape) {
      throw std::invalid_argument(format_message(
          "features of model ", i, " have sample axes ", text(shape), ", but model 0 has ",
          text(views[0].sample_shape), "; all models must see the same samples"));
    }
  }
  return views;
}

void check_mask(const std::vector<std::int64_t>& shape, const FeatureView& view) {
  if (shape == view.sample_shape || shape == std::vector<std::int64_t>{view.samples()}) return;
  throw std::invalid_argument("mask must have the sample axes' shape " + text(view.sample_shape) +
                              " or be flat (" + std::to_string(view.samples()) + ",), got " +
                              text(shape));
}

void check_axes(const std::vector<std::int64_t>& axes) {
  if (axes.empty()) throw std::invalid_argument("axis must name at least one axis, got none");
}

namespace {

std::vector<double> checked_vector(const Array& array, std::int64_t size, const std::string& name) {
  if (array.ndim() != 1 || array.shape(0) != size) {
    throw std::invalid_argument(name + " must have shape (" + std::to_string(size) + ",)");
  }
  return {array.data(), array.data() + size};
}

}  // namespace

State checked_state(const BlockTable& table, std::int64_t count, const std::vector<Array>& means,
                    const std::vector<Array>& shifts, const std::vector<Array>& blocks) {
  const auto& pairs = table.blocks();
  const auto& dims = table.dims();
  if (count < 0) throw std::invalid_argument("count must not be negative");
  if (means.size() != dims.size() || shifts.size() != dims.size() ||
      blocks.size() != pairs.size()) {
    throw std::invalid_argument("state does not fit these moments");
  }
  State state{{count, {}, {}}, {}};
  for (std::size_t i = 0; i < dims.size(); ++i) {
    state.vectors.means.push_back(checked_vector(means[i], dims[i], "mean." + std::to_string(i)));
    state.vectors.shifts.push_back(
        checked_vector(shifts[i], dims[i], "shift." + std::to_string(i)));
  }
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const auto [row, column] = pairs[b];
    const std::int64_t rows = table.dim(row), columns = table.dim(column);
    if (blocks[b].ndim() != 2 || blocks[b].shape(0) != rows || blocks[b].shape(1) != columns) {
      throw std::invalid_argument(
          format_message("m2.", row, ".", column, " must have shape (", rows, ", ", columns, ")"));
    }
    state.m2.push_back(blocks[b].data());
  }
  return state;
}

Array vector_array(const std::vector<double>& values) {
  return Array(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace ccamerge::bind
