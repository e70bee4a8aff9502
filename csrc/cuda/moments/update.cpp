// The update of moments on a device: checks, and which way it goes.
#include <algorithm>

#include "common/check.hpp"
#include "cuda/moments/update_routes.hpp"

namespace ccamerge::cuda {
namespace {

void check_sizes(const Update& one) {
  if (one.moments->table().models() > 1 << kModelBits ||
      one.features.front().samples() > kTooSmall) {
    throw std::invalid_argument(
        "an update on a device takes at most 1024 models and 2^34 - 1 samples");
  }
}

// A share of the device's memory.
Limits limits_of(int device) {
  Limits limits;
  limits.operand_bytes =
      std::clamp(memory_bytes(device) / 64, std::size_t{256} << 20, std::size_t{2} << 30);
  return limits;
}

}  // namespace

void update(const std::vector<Update>& updates, const std::string& label, const Allocate& allocate,
            cudaStream_t stream, const std::optional<Limits>& limits) {
  std::vector<UpdateInput> inputs;
  for (const Update& one : updates) {
    check_sizes(one);
    inputs.emplace_back(one);
  }
  std::vector<std::unique_ptr<UpdateRoute>> routes(updates.size());
  for (std::size_t i = 0; i < updates.size(); ++i) {
    const UpdateInput& input = inputs[i];
    const Moments& moments = *updates[i].moments;
    if (input.samples == 0) continue;
    const DeviceGuard guard(moments.device());
    const int device = moments.device(), processors = multiprocessors(device);
    SmallLayout layout;
    if (input.simple() && small_layout(moments.table(), &layout) && small_fits(layout, device)) {
      routes[i] = small_route(input, layout, processors, allocate);
    } else {
      routes[i] = product_route(input, moments.table(), limits ? *limits : limits_of(device),
                                processors, allocate);
    }
  }
  for (std::size_t i = 0; i < updates.size(); ++i) {
    if (!routes[i]) continue;
    updates[i].moments->updating(label, stream, [&](const Storage& storage, long long number) {
      routes[i]->queue(storage, number, stream);
    });
  }
}

}  // namespace ccamerge::cuda
