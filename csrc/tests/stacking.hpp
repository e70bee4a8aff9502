// The CPU backend with a device's way of working: equal problems in stacks, one task after the
// other, and blocks of another order.
#pragma once

#include <climits>
#include <cstddef>
#include <map>
#include <vector>

#include "cpu/solve/backend.hpp"

namespace ccamerge {

class Stacking : public Cpu {
 public:
  static constexpr int block = 16;
  static constexpr int panel = INT_MAX;

  bool failed_all(const Info&) { return false; }
  int threads() { return 1; }

  void each(std::size_t count, const Task& task) {
    for (std::size_t i = 0; i < count; ++i) task(i);
  }

  void groups(const std::vector<WorkItem>& items, const GroupTask& task) {
    std::map<std::array<int, 3>, std::vector<std::size_t>> stacks;
    for (std::size_t i = 0; i < items.size(); ++i) stacks[items[i].key].push_back(i);
    for (const auto& [key, indices] : stacks) task(indices);
  }
};

static_assert(Backend<Stacking>);

}  // namespace ccamerge
