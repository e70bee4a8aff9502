// What an update is given, made ready for kernels, and in which form it will be multiplied.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/libraries.hpp"
#include "cuda/moments.hpp"
#include "cuda/statistics.hpp"

namespace ccamerge::cuda {

struct UpdateInput {
  // Throws std::invalid_argument for arrays of too many axes.
  explicit UpdateInput(const Update& update);

  std::size_t models() const { return features.size(); }
  // Whether a shift serves the next update too; that of the narrow form is chosen afresh each time.
  bool keeps_shift() const { return form != Form::narrow; }

  // The models side by side, kModelsPerLaunch at most in each, with the storage's shifts.
  std::vector<Batch> batches(const Storage& storage) const;

  std::int64_t samples = 0;
  const std::uint8_t* mask = nullptr;
  std::vector<Features> features;
  // doubles if any model's features are float64; narrow if all are of one 16-bit type; else planes.
  Form form = Form::planes;
  Number number = Number::bfloat16;  // of the operands
};

}  // namespace ccamerge::cuda
