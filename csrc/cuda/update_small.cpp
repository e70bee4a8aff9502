// An update of few features: see small.hpp.
#include "cuda/update_routes.hpp"

namespace ccamerge::cuda {
namespace {

// Workspace; laid out once to count it and once to hand it out.
struct Workspace {
  double* products = nullptr;
  Sums sums;
  Choices choices;
  Centre centres[kModelsPerLaunch] = {};

  template <class Part>
  void lay_out(const UpdateInput& input, const SmallLayout& layout, std::size_t parts,
               Part&& part) {
    part(parts * static_cast<std::size_t>(layout.tiles * kSmallTile * kSmallTile), products);
    part(parts, sums.selected);
    for (std::size_t m = 0; m < input.models(); ++m) {
      const auto width = static_cast<std::size_t>(layout.width[m]);
      part(parts * width, sums.partials[m]);
      if (input.shifted()) part(width, choices.shift[m]);
      part(width, choices.seen[m]);
      for (double** of :
           {&centres[m].sum, &centres[m].offset, &centres[m].delta, &centres[m].keep}) {
        part(width, *of);
      }
    }
  }
};

}  // namespace

void update_small(const UpdateInput& input, const SmallLayout& layout, const Storage& storage,
                  long long number, int multiprocessors, const Allocate& allocate,
                  cudaStream_t stream) {
  const SmallPlan plan = small_plan(layout, input.samples, multiprocessors);
  const std::int64_t parts = plan.parts(layout);
  Workspace work;
  const Arena arena(allocate, [&](auto&& part) {
    work.lay_out(input, layout, static_cast<std::size_t>(parts), part);
  });
  Batch batch = input.batches(storage).front();
  choose_shifts(batch, work.choices, false, stream);
  if (input.shifted()) std::copy_n(work.choices.shift, batch.models, batch.shift);
  small_products(batch, input.shifted(), layout, plan, work.choices.seen, work.sums, work.products,
                 storage.state, stream);
  derive_centres(batch, work.sums, parts, storage.means.data(), work.centres, storage.state, number,
                 stream);
  small_add(layout, plan, work.products, storage.totals.data(), storage.totals.size(), work.centres,
            storage.state, stream);
  finish(batch, work.centres, work.choices.shift, storage.shifts.data(), storage.means.data(),
         storage.state, true, stream);
}

}  // namespace ccamerge::cuda
