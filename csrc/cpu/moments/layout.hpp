// How an update's memory is laid out and its work divided.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/moments/moments.hpp"
#include "cpu/moments/samples.hpp"

namespace ccamerge {

// Chosen by measurement; packed chunks plus copies stay below 64 MiB of extra memory.
inline constexpr std::size_t chunk_bytes = std::size_t{2} << 20;
inline constexpr std::int64_t least_blocks =
    8;  // amortises adding to totals that do not fit a cache
inline constexpr std::size_t most_chunk_bytes = std::size_t{40} << 20;
inline constexpr std::ptrdiff_t panel_stride =
    block_samples * panel_width + panel_width;  // no aliasing
inline constexpr std::size_t wanted_tasks = 16;

// Reused between calls, so that memory is not handed back and zeroed again by the system each time.
struct Workspace {
  Buffer packed, sums, tiles;
};

// For each feature, how many from it on lie side by side.
inline std::vector<std::ptrdiff_t> stretches(const std::vector<std::ptrdiff_t>& offsets) {
  std::vector<std::ptrdiff_t> adjacent(offsets.size(), 1);
  for (std::size_t f = offsets.size(); f-- > 1;) {
    if (offsets[f] == offsets[f - 1] + 1) adjacent[f - 1] = adjacent[f] + 1;
  }
  return adjacent;
}

// Operands and sums of a tile of this order fit the second-level cache.
inline constexpr std::int64_t tile_features = 128;

// One model's features in an update.
struct ModelPart {
  FeatureView view;  // collapsed
  std::int64_t features = 0;
  std::vector<std::ptrdiff_t> offsets, adjacent;  // (features,), see PackRun
  std::int64_t padded = 0;
  std::size_t block_bytes = 0;      // of one packed sub-block
  std::byte* packed = nullptr;      // (chunk_blocks, panels, panel_stride) compute type
  double* sums = nullptr;           // (chunk_blocks, 2, padded): sums, then squares
  std::vector<std::byte> shift;     // (padded,) compute type
  std::vector<double> sum, square;  // (padded,) of the chunk
  std::vector<double> delta;        // (padded,) chunk mean less the mean so far
};

// Part of a block: (rows, columns) features from (row, column) on.
struct Tile {
  Block* block;
  std::int64_t row, column, rows, columns;  // rows and columns in multiples of panel_width
  bool upper;                               // on the diagonal of a model's own block

  std::int64_t cost() const { return rows * columns / (upper ? 2 : 1); }
  std::size_t size() const { return static_cast<std::size_t>(rows * columns); }
};

inline std::vector<Tile> tiles_of(std::vector<Block>& blocks) {
  std::vector<Tile> tiles;
  for (Block& block : blocks) {
    const bool own = block.row == block.column;
    const std::int64_t rows = padded(block.rows), columns = padded(block.columns);
    for (std::int64_t r = 0; r < rows; r += tile_features) {
      for (std::int64_t c = own ? r : 0; c < columns; c += tile_features) {
        tiles.push_back({&block, r, c, std::min(tile_features, rows - r),
                         std::min(tile_features, columns - c), own && r == c});
      }
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(),
                   [](const Tile& a, const Tile& b) { return a.cost() > b.cost(); });
  return tiles;
}

}  // namespace ccamerge
