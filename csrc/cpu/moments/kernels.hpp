// The inner loops of the moments, compiled once for each instruction set and chosen at run time,
// because a wheel is built for plain x86-64. They are not BLAS calls for a measured reason: packing
// (convert, shift, transpose, sum) writes the layout that a register-tiled product reads, so
// nothing is packed twice, and a symmetric block skips what lies below its diagonal tile by tile.
// Measured side by side on one core with operands in cache: 126 GFlop/s for 128 features and 256
// samples against 93 of OpenBLAS's sgemm (which reaches 120 at order 2048).
//
// Packed layout of K samples: panels of 16 features, each (K, 16) row-major, panel_stride elements
// apart. Features beyond the last are zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/dtype.hpp"

namespace ccamerge {

inline constexpr std::ptrdiff_t panel_width = 16;

// A straight run of samples to be packed. Strides in elements of the source.
struct PackRun {
  const void* source;  // first sample, first feature
  std::ptrdiff_t sample_stride;
  std::ptrdiff_t samples;
  std::ptrdiff_t features;
  const std::ptrdiff_t* offsets;   // (features) from the first feature, in elements
  const std::ptrdiff_t* adjacent;  // (features) how many, this one included, lie side by side
  const void* shift;               // (padded features) of the compute type, zero in the padding
  void* target;                    // panel 0 at this run's first sample, compute type
  std::ptrdiff_t panel_stride;
  double* sums;     // (padded features), the run's sum of x - shift is added
  double* squares;  // (padded features), the run's sum of squares of x - shift is added
};

// acc[j, i] += sum over samples of b[sample, j] * a[sample, i], for 16-aligned feature ranges
// a_features x b_features starting at the given panels. Summed in the compute type over the call,
// which therefore should take a few hundred samples, then added in float64.
struct PanelProduct {
  std::ptrdiff_t samples;
  const void* a;
  std::ptrdiff_t a_features, a_panel_stride;
  const void* b;
  std::ptrdiff_t b_features, b_panel_stride;
  double* acc;  // (b_features, a_features), rows row_stride apart
  std::ptrdiff_t row_stride;
  bool upper;  // a and b are the same panels: only elements with i >= j are wanted
};

// total[i] += acc[i] - u * s[i] + w * delta[i] for one row of a block: Chan, Golub & LeVeque
// (1983).
using FlushRow = void (*)(std::ptrdiff_t n, double* total, const double* acc, double u,
                          const double* s, double w, const double* delta);

using Pack = void (*)(const PackRun&);
using Product = void (*)(const PanelProduct&);

struct Kernels {
  const char* name;
  Pack pack_float[4];   // by source DType; float64 sources have none
  Pack pack_double[4];  // by source DType
  Product product_float;
  Product product_double;
  FlushRow flush_row;
};

// The chosen kernels: the widest that this processor runs, unless select_kernels was called.
const Kernels& kernels();

// Names of those that this processor runs, widest first; count is set to their number.
const char* const* kernel_names(std::size_t* count);

// For tests and comparisons. False if the name is unknown or the processor cannot run it.
bool select_kernels(const char* name);

}  // namespace ccamerge
