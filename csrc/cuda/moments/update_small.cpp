// An update of few features: see small.hpp.
#include <algorithm>

#include "cuda/moments/update_routes.hpp"

namespace ccamerge::cuda {
namespace {

class SmallUpdate final : public UpdateRoute {
 public:
  SmallUpdate(const UpdateInput& input, const SmallLayout& layout, int multiprocessors,
              const Allocate& allocate)
      : input_(input),
        layout_(layout),
        plan_(small_plan(layout, input.samples, multiprocessors)),
        arena_(allocate, [this](auto&& part) { lay_out(part); }) {}

  void queue(const Storage& storage, long long number, cudaStream_t stream) override {
    Batch batch = input_.batches(storage).front();
    guess_shifts(batch, chosen_, stream);
    std::copy_n(chosen_, batch.models, batch.shift);
    small_products(batch, layout_, plan_, sums_, products_, storage.state, stream);
    derive_centres(batch, Form::singles, sums_, storage.means.data(), centres_, nullptr,
                   storage.state, stream);
    small_add(layout_, plan_, products_, storage.totals.data(), storage.totals.size(), centres_,
              storage.state, stream);
    finish(batch, centres_, chosen_, storage.shifts.data(), storage.means.data(), storage.state,
           true, number, stream);
  }

 private:
  template <class Part>
  void lay_out(Part&& part) {
    const auto parts = static_cast<std::size_t>(plan_.blocks);
    sums_.parts = plan_.blocks;
    part(parts * static_cast<std::size_t>(layout_.tiles * kSmallTile * kSmallTile), products_);
    part(parts, sums_.selected);
    for (std::size_t m = 0; m < input_.models(); ++m) {
      const auto width = static_cast<std::size_t>(layout_.width[m]);
      part(parts * width, sums_.partials[m]);
      part(width, chosen_[m]);
      centres_[m].lay_out(width, part);
    }
  }

  const UpdateInput& input_;
  SmallLayout layout_;
  SmallPlan plan_;
  double* products_ = nullptr;  // in the workspace, as all that follow point there
  Sums sums_;
  double* chosen_[kModelsPerLaunch] = {};
  Centre centres_[kModelsPerLaunch] = {};
  Arena arena_;
};

}  // namespace

std::unique_ptr<UpdateRoute> small_route(const UpdateInput& input, const SmallLayout& layout,
                                         int multiprocessors, const Allocate& allocate) {
  return std::make_unique<SmallUpdate>(input, layout, multiprocessors, allocate);
}

}  // namespace ccamerge::cuda
