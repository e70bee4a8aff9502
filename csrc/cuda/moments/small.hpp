// The update of few features in one kernel that reads each element once: conversion, shift, sums
// and products on the matrix units together. For more features products are cuBLAS's (see
// update_products.cpp).
#pragma once

#include <cstdint>
#include <vector>

#include "common/block_table.hpp"
#include "cuda/memory.hpp"
#include "cuda/moments/statistics.hpp"
#include "cuda/moments/totals.hpp"

namespace ccamerge::cuda {

inline constexpr int kSmallTile = 32;  // order of the tiles of products that a warp sums
inline constexpr int kSmallMostTiles = 24;
inline constexpr int kSmallMostFeatures = 256;
inline constexpr int kSmallMostBlocks = 16;  // of totals
inline constexpr int kSmallWarps = 8;        // of a thread block
inline constexpr int kSmallPad = 16;         // every model's features are filled up to a multiple

// All features of an update on one axis, each model's filled up. Tiles are those of the upper
// triangle that hold something wanted.
struct SmallLayout {
  int models = 0, features = 0, tiles = 0;  // features with the filling
  int stage = 0;                            // samples that a thread block works on at a time
  int split = 1;                            // warps that share a tile's samples
  int start[kModelsPerLaunch] = {};         // of each model on the axis
  int width[kModelsPerLaunch] = {};
  std::uint8_t tile_row[kSmallMostTiles] = {}, tile_col[kSmallMostTiles] = {};
  // Of the block of models i <= j in the table's order, or -1; whether rows are model j's.
  std::int8_t block[kModelsPerLaunch][kModelsPerLaunch] = {};
  bool swapped[kModelsPerLaunch][kModelsPerLaunch] = {};
};

// False if the features are too many.
bool small_layout(const BlockTable& table, SmallLayout* layout);

// How the samples are shared out: each thread block takes `windows` windows of `window` samples, a
// multiple of the layout's stage.
struct SmallPlan {
  std::int64_t window = 0, windows = 0, blocks = 0;
};
SmallPlan small_plan(const SmallLayout& layout, std::int64_t samples, int multiprocessors);

// Whether a thread block of the device has the shared memory that is needed.
bool small_fits(const SmallLayout& layout, int device);

// products (blocks, tiles, kSmallTile, kSmallTile), and sums in as many parts. Features are all of
// one dtype, not float64, all models' samples lie alike, and there is no mask.
void small_products(const Batch& batch, const SmallLayout& layout, const SmallPlan& plan,
                    const Sums& sums, double* products, State* state, cudaStream_t stream);

// Adds the products to all totals.
void small_add(const SmallLayout& layout, const SmallPlan& plan, const double* products,
               const Total* totals, std::size_t total_count, const Centre* centres,
               const State* state, cudaStream_t stream);

}  // namespace ccamerge::cuda
