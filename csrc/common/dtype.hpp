// The element types that features may have. The only place that lists them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ccamerge {

enum class DType : std::uint8_t { float16, bfloat16, float32, float64 };

// Storage of the 16-bit types; converted exactly to float32 when read.
struct Half {
  std::uint16_t bits;
};
struct Bfloat {
  std::uint16_t bits;
};

// Calls visit with a null pointer of the element type, so that a template can take it from there.
template <class Visit>
inline auto visit_dtype(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::float16:
      return visit(static_cast<const Half*>(nullptr));
    case DType::bfloat16:
      return visit(static_cast<const Bfloat*>(nullptr));
    case DType::float32:
      return visit(static_cast<const float*>(nullptr));
    case DType::float64:
      break;
  }
  return visit(static_cast<const double*>(nullptr));
}

inline std::size_t item_size(DType dtype) {
  return visit_dtype(dtype, [](auto* element) { return sizeof(*element); });
}

}  // namespace ccamerge
