// What an update is given, made ready for kernels, and in which form it will be multiplied.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/libraries.hpp"
#include "cuda/moments/moments.hpp"
#include "cuda/moments/statistics.hpp"

namespace ccamerge::cuda {

struct UpdateInput {
  // Throws std::invalid_argument for arrays of too many axes.
  explicit UpdateInput(const Update& update);

  std::size_t models() const { return features.size(); }
  // Whether one kernel can read all models alike, and may judge all samples by a few.
  bool simple() const { return uniform && !mask && form != Form::doubles; }

  // Up to kModelsPerLaunch models from the given one on, side by side.
  Batch batch(std::size_t first) const;
  // All of them, with the storage's shifts.
  std::vector<Batch> batches(const Storage& storage) const;

  std::int64_t samples = 0;
  bool by_samples = false;  // of the first model: see Batch
  bool uniform = true;      // whether all models' samples lie alike, and are of one type
  const std::uint8_t* mask = nullptr;
  std::vector<Features> features;
  // doubles if any model's features are float64; narrow if all are of one 16-bit type; else
  // singles.
  Form form = Form::singles;
  Number number = Number::float16;  // of the operands
};

}  // namespace ccamerge::cuda
