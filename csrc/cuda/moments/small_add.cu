// Adding the sums of an update of few features to the totals.
#include <algorithm>

#include "cuda/moments/small.hpp"
#include "cuda/moments/state_updates.hpp"

namespace ccamerge::cuda {
namespace {

struct Targets {
  Total total[kSmallMostBlocks];
  Centre centre[kModelsPerLaunch];
};

// Threads along x take a row of a tile, those along y share its parts.
constexpr int kShares = 32;

__global__ void __launch_bounds__(kSmallTile* kShares)
    add_kernel(const __grid_constant__ SmallLayout layout, std::int64_t parts,
               const double* products, const __grid_constant__ Targets targets,
               const State* state) {
  __shared__ double shared[kShares][kSmallTile];
  if (state->bad || state->selected == 0) return;
  const int tile = static_cast<int>(blockIdx.x) / kSmallTile;
  const int i = static_cast<int>(blockIdx.x) % kSmallTile, j = static_cast<int>(threadIdx.x);
  const std::int64_t size = static_cast<std::int64_t>(layout.tiles) * kSmallTile * kSmallTile;
  const double* const from =
      products + (static_cast<std::int64_t>(tile) * kSmallTile + i) * kSmallTile + j;
  double sum = 0;
#pragma unroll 4
  for (std::int64_t p = threadIdx.y; p < parts; p += kShares) sum += from[p * size];
  shared[threadIdx.y][j] = sum;
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int s = 1; s < kShares; ++s) sum += shared[s][j];

  // Which features these are, of which models.
  const int at[2] = {layout.tile_row[tile] * kSmallTile + i,
                     layout.tile_col[tile] * kSmallTile + j};
  if (at[0] > at[1]) return;
  int model[2] = {-1, -1};
  std::int64_t feature[2] = {0, 0};
  for (int side = 0; side < 2; ++side) {
    for (int m = 0; m < layout.models; ++m) {
      const int f = at[side] - layout.start[m];
      if (f < 0 || f >= layout.width[m]) continue;
      model[side] = m;
      feature[side] = f;
    }
  }
  if (model[0] < 0 || model[1] < 0 || layout.block[model[0]][model[1]] < 0) return;
  const bool swapped = layout.swapped[model[0]][model[1]];
  const int r = swapped, c = !swapped;
  const Total& total = targets.total[layout.block[model[0]][model[1]]];
  total.data[feature[r] * total.columns + feature[c]] +=
      centred(sum, targets.centre[model[r]], feature[r], targets.centre[model[c]], feature[c],
              *state, true);
}

}  // namespace

void small_add(const SmallLayout& layout, const SmallPlan& plan, const double* products,
               const Total* totals, std::size_t total_count, const Centre* centres,
               const State* state, cudaStream_t stream) {
  Targets targets{};
  std::copy_n(totals, total_count, targets.total);
  std::copy_n(centres, layout.models, targets.centre);
  launch(add_kernel, static_cast<unsigned>(layout.tiles * kSmallTile), {kSmallTile, kShares}, 0,
         stream, layout, plan.blocks, products, targets, state);
}

}  // namespace ccamerge::cuda
