// The update of moments on a device: checks, and which way it goes.
#include "check.hpp"
#include "cuda/update_routes.hpp"

namespace ccamerge::cuda {
namespace {

void check_sizes(const Update& one) {
  if (one.moments->table().models() > 1024 ||
      one.features.front().samples() > std::int64_t{1} << Position::kSampleBits) {
    throw std::invalid_argument("an update on a device takes at most 1024 models and 2^34 samples");
  }
}

}  // namespace

void update(const std::vector<Update>& updates, const std::string& label, const Allocate& allocate,
            cudaStream_t stream, const Limits& limits) {
  std::vector<UpdateInput> inputs;
  for (const Update& one : updates) {
    check_sizes(one);
    inputs.emplace_back(one);
  }
  for (std::size_t i = 0; i < updates.size(); ++i) {
    const UpdateInput& input = inputs[i];
    Moments& moments = *updates[i].moments;
    if (input.samples == 0) continue;
    moments.updating(label, [&](const Storage& storage, long long number) {
      SmallLayout layout;
      if (input.form != Form::doubles && small_layout(moments.table(), &layout)) {
        update_small(input, layout, storage, number, multiprocessors(moments.device()), allocate,
                     stream);
      } else {
        update_by_products(input, moments.table(), storage, number, limits, allocate, stream);
      }
    });
  }
}

}  // namespace ccamerge::cuda
