// One product of a warp on the matrix units: c (16, 8) += a (16, 16) b (16, 8), of bfloat16
// numbers with exact products, summed in float32. Fragments as PTX's mma.m16n8k16 has them: with
// g = lane / 4 and t = lane % 4,
//   a: rows g, g + 8, g, g + 8, columns from 2t, 2t, 2t + 8, 2t + 8 on; two columns a register
//   b: column g, rows from 2t, 2t + 8 on; two rows a register
//   c: rows g, g, g + 8, g + 8, columns 2t, 2t + 1, 2t, 2t + 1
#pragma once

#include <cstdint>

#include "cuda/half.hpp"

namespace ccamerge::cuda {

#ifdef CCAMERGE_EMULATED

// The first lane works for all of them.
inline void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Fragments {
    const std::uint32_t* halves;  // two to each of a's four registers, then of b's two
    float* c;
  };
  std::uint32_t registers[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const Fragments mine{registers, c};
  static_assert(sizeof(mine) <= 16);
  emulation::give(&mine, sizeof(mine));
  if (emulation::lane() == 0) {
    const auto of = [](unsigned lane) {
      return static_cast<const Fragments*>(emulation::given(lane));
    };
    const auto half = [&](unsigned lane, unsigned index, unsigned which) {
      const std::uint32_t pair = of(lane)->halves[index];
      return to_float(Bfloat{static_cast<std::uint16_t>(pair >> (16 * which))});
    };
    float x[16][16], y[16][8];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned owner = k % 8 / 2, high = k / 8;
      for (unsigned i = 0; i < 16; ++i)
        x[i][k] = half(4 * (i % 8) + owner, 2 * high + i / 8, k % 2);
      for (unsigned j = 0; j < 8; ++j) y[k][j] = half(4 * j + owner, 4 + high, k % 2);
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned e = 0; e < 4; ++e) {
        const unsigned row = lane / 4 + 8 * (e / 2), col = 2 * (lane % 4) + e % 2;
        float& sum = of(lane)->c[e];
        for (unsigned k = 0; k < 16; ++k) sum += x[row][k] * y[k][col];
      }
    }
  }
  emulation::meet();
}

#else

__device__ inline void mma(float (&c)[4], const std::uint32_t (&a)[4],
                           const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

}  // namespace ccamerge::cuda
