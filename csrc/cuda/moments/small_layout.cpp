// How an update of few features is laid out.
#include <algorithm>

#include "cuda/moments/small.hpp"

namespace ccamerge::cuda {
namespace {

constexpr std::int64_t kSummed = 2048;      // samples that a warp sums in float32
constexpr std::int64_t kLeastWindow = 128;  // less is not worth a tile in memory

}  // namespace

bool small_layout(const BlockTable& table, SmallLayout* layout) {
  const int models = table.models();
  if (models > kModelsPerLaunch || table.blocks().size() > kSmallMostBlocks) return false;
  *layout = {};
  layout->models = models;
  std::int64_t at = 0;
  for (int m = 0; m < models; ++m) {
    if (at + table.dim(m) > kSmallMostFeatures) return false;
    layout->start[m] = static_cast<int>(at);
    layout->width[m] = static_cast<int>(table.dim(m));
    at += ceil_div<std::int64_t>(table.dim(m), kSmallPad) * kSmallPad;
  }
  layout->features = static_cast<int>(ceil_div<std::int64_t>(at, kSmallTile)) * kSmallTile;
  // So that threads have registers for all elements that they read ahead.
  layout->stage = layout->features <= 128 ? 64 : 32;
  for (int i = 0; i < models; ++i) {
    for (int j = 0; j < models; ++j) {
      layout->block[i][j] = -1;
      if (i > j || !table.has(i, j)) continue;
      const auto place = table.place(i, j);
      layout->block[i][j] = static_cast<std::int8_t>(place.index);
      layout->swapped[i][j] = place.transposed;
    }
  }
  // Of each piece of the axis, its model, or -1 for filling.
  std::vector<int> owner(static_cast<std::size_t>(layout->features / kSmallPad), -1);
  for (int m = 0; m < models; ++m) {
    for (int f = 0; f < layout->width[m]; f += kSmallPad) {
      owner[static_cast<std::size_t>((layout->start[m] + f) / kSmallPad)] = m;
    }
  }
  constexpr int pieces = kSmallTile / kSmallPad;
  const int order = layout->features / kSmallTile;
  for (int row = 0; row < order; ++row) {
    for (int col = row; col < order; ++col) {
      bool wanted = false;
      for (int e = 0; e < pieces * pieces && !wanted; ++e) {
        const int i = owner[static_cast<std::size_t>(row * pieces + e / pieces)];
        const int j = owner[static_cast<std::size_t>(col * pieces + e % pieces)];
        wanted = i >= 0 && j >= 0 && layout->block[std::min(i, j)][std::max(i, j)] >= 0;
      }
      if (!wanted) continue;
      if (layout->tiles == kSmallMostTiles) return false;
      layout->tile_row[layout->tiles] = static_cast<std::uint8_t>(row);
      layout->tile_col[layout->tiles++] = static_cast<std::uint8_t>(col);
    }
  }
  while (layout->split * 2 <= layout->stage / 16 &&
         layout->split * 2 * layout->tiles <= kSmallWarps) {
    layout->split *= 2;
  }
  return true;
}

SmallPlan small_plan(const SmallLayout& layout, std::int64_t samples, int multiprocessors) {
  // By registers, so many blocks fit at a time.
  const std::int64_t fit = layout.features > 64 ? 1 : 2;
  const std::int64_t most_blocks = fit * multiprocessors;
  // Short windows where there are few samples, so that every multiprocessor has some.
  const std::int64_t fair = ceil_div(samples, most_blocks), stage = layout.stage;
  SmallPlan plan;
  plan.window =
      std::clamp<std::int64_t>(ceil_div(fair, stage) * stage, kLeastWindow, kSummed * layout.split);
  plan.windows = ceil_div(ceil_div(samples, plan.window), most_blocks);
  plan.blocks = ceil_div(samples, plan.window * plan.windows);
  return plan;
}

}  // namespace ccamerge::cuda
