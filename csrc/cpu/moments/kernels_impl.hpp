// Body of the kernels, included by one source file for each instruction set with CCAMERGE_ISA set
// to the namespace and CCAMERGE_VECTOR to the vector's bytes. Written with the compilers' vector
// extensions, so the arithmetic is the same in each. Includes no header with code of its own: an
// inline function compiled here for a wide instruction set could be the copy that the linker keeps.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/moments/kernels.hpp"

namespace ccamerge::CCAMERGE_ISA {
namespace {

#define CCAMERGE_INLINE inline __attribute__((always_inline))

template <class T, int Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};
template <class T>
inline constexpr int lanes = CCAMERGE_VECTOR / static_cast<int>(sizeof(T));
template <class T>
using Vec = typename VectorOf<T, lanes<T>>::type;

template <class V, class T>
CCAMERGE_INLINE V load_raw(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class To, class From>
CCAMERGE_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// lanes<T> consecutive source elements, converted exactly.
template <class T>
CCAMERGE_INLINE Vec<T> load(const T* p) {
  return load_raw<Vec<T>>(p);
}

template <class T>
  requires(sizeof(T) == 8)
CCAMERGE_INLINE Vec<T> load(const float* p) {
  using Narrow = typename VectorOf<float, lanes<T>>::type;
  return __builtin_convertvector(load_raw<Narrow>(p), Vec<T>);
}

template <class T>
CCAMERGE_INLINE Vec<T> load(const Bfloat* p) {
  using Short = typename VectorOf<std::uint16_t, lanes<T>>::type;
  using Word = typename VectorOf<std::uint32_t, lanes<T>>::type;
  using Single = typename VectorOf<float, lanes<T>>::type;
  const Word word = __builtin_convertvector(load_raw<Short>(p), Word) << 16;
  return __builtin_convertvector(bits_as<Single>(word), Vec<T>);
}

// Exponent and fraction are moved into float32's place and rescaled by a multiplication, which is
// exact and also normalises subnormals; infinities and NaNs get float32's exponent of all ones.
template <class T>
CCAMERGE_INLINE Vec<T> load(const Half* p) {
  using Short = typename VectorOf<std::uint16_t, lanes<T>>::type;
  using Word = typename VectorOf<std::uint32_t, lanes<T>>::type;
  using Single = typename VectorOf<float, lanes<T>>::type;
  const Word word = __builtin_convertvector(load_raw<Short>(p), Word);
  const Word magnitude = (word & 0x7fffu) << 13;
  const Word scaled = bits_as<Word>(bits_as<Single>(magnitude) * 0x1p112f);
  const Word special = bits_as<Word>(magnitude >= Word{} + (0x7c00u << 13)) & 0x7f800000u;
  const Word sign = (word & 0x8000u) << 16;
  return __builtin_convertvector(bits_as<Single>(scaled | special | sign), Vec<T>);
}

// The first count (at most lanes<T>) of a strided row, zero after them.
template <class T, class Source>
CCAMERGE_INLINE Vec<T> gather(const Source* p, std::ptrdiff_t stride, std::ptrdiff_t count) {
  Source row[lanes<T>] = {};
  for (std::ptrdiff_t i = 0; i < count; ++i) row[i] = p[i * stride];
  return load<T>(row);
}

// The same of elements at offsets from p.
template <class T, class Source>
CCAMERGE_INLINE Vec<T> pick(const Source* p, const std::ptrdiff_t* offsets, std::ptrdiff_t count) {
  Source row[lanes<T>] = {};
  const std::ptrdiff_t present = count < lanes<T> ? count : lanes<T>;
  for (std::ptrdiff_t i = 0; i < present; ++i) row[i] = p[offsets[i]];
  return load<T>(row);
}

#if defined(__clang__) || __GNUC__ >= 12
template <int Half, class V, std::size_t... I>
CCAMERGE_INLINE V zip_half(V a, V b, std::index_sequence<I...>) {
  constexpr int n = static_cast<int>(sizeof...(I));
  return __builtin_shufflevector(a, b,
                                 (static_cast<int>(I) / 2 + Half * n / 2 + (I % 2 ? n : 0))...);
}
#else
template <int Half, class V, std::size_t... I>
CCAMERGE_INLINE V zip_half(V a, V b, std::index_sequence<I...>) {
  constexpr int n = static_cast<int>(sizeof...(I));
  using Element = std::remove_reference_t<decltype(a[0])>;
  using Index = std::conditional_t<sizeof(Element) == 8, std::int64_t, std::int32_t>;
  typename VectorOf<Index, n>::type order = {
      (static_cast<Index>(I) / 2 + Half * n / 2 + (I % 2 ? n : 0))...};
  return __builtin_shuffle(a, b, order);
}
#endif

// Square transpose in registers: interleaving row i with row i + L/2 rotates the bits of (row,
// column) by one place, so log2(L) rounds exchange the two.
template <class T>
CCAMERGE_INLINE void transpose(Vec<T> (&rows)[lanes<T>]) {
  constexpr int n = lanes<T>;
  using Order = std::make_index_sequence<static_cast<std::size_t>(n)>;
  for (int round = 1; round < n; round *= 2) {
    Vec<T> next[n];
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = zip_half<0>(rows[i], rows[i + n / 2], Order{});
      next[2 * i + 1] = zip_half<1>(rows[i], rows[i + n / 2], Order{});
    }
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

template <class T>
CCAMERGE_INLINE void add_to_doubles(double* target, Vec<T> v) {
  using Wide = Vec<double>;
  constexpr int n = lanes<double>, parts = lanes<T> / n;
  using Part = typename VectorOf<T, n>::type;
  Part part[parts];
  __builtin_memcpy(part, &v, sizeof v);
  for (int i = 0; i < parts; ++i) {
    const Wide sum = load_raw<Wide>(target + i * n) + __builtin_convertvector(part[i], Wide);
    __builtin_memcpy(target + i * n, &sum, sizeof sum);
  }
}

// Stores count sample rows of lanes<T> features and adds up their sums in short float chains.
template <class T>
CCAMERGE_INLINE void store_rows(const Vec<T>* rows, std::ptrdiff_t count, T* target, double* sums,
                                double* squares) {
  Vec<T> sum[2] = {}, square[2] = {};
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    __builtin_memcpy(target + i * panel_width, &rows[i], sizeof(Vec<T>));
    sum[i & 1] += rows[i];
    square[i & 1] += rows[i] * rows[i];
  }
  add_to_doubles<T>(sums, sum[0] + sum[1]);
  add_to_doubles<T>(squares, square[0] + square[1]);
}

// Samples lie next to each other (or nothing does): rows of samples, transposed.
template <class T, class Source>
void pack_by_sample(const PackRun& run) {
  constexpr std::ptrdiff_t n = lanes<T>;
  const auto* source = static_cast<const Source*>(run.source);
  const auto* shift = static_cast<const T*>(run.shift);
  const std::ptrdiff_t padded = (run.features + panel_width - 1) / panel_width * panel_width;
  for (std::ptrdiff_t f = 0; f < padded; f += n) {
    T* const panel = static_cast<T*>(run.target) + f / panel_width * run.panel_stride;
    const std::ptrdiff_t present = run.features - f < 0 ? 0 : run.features - f;
    const std::ptrdiff_t* const offsets = run.offsets + f;
    for (std::ptrdiff_t k = 0; k < run.samples; k += n) {
      const std::ptrdiff_t count = run.samples - k < n ? run.samples - k : n;
      T* const target = panel + k * panel_width + f % panel_width;
      Vec<T> rows[n];
      if (count == n && run.sample_stride == 1) {
        if (present >= n) {
          for (std::ptrdiff_t i = 0; i < n; ++i) {
            rows[i] = load<T>(source + offsets[i] + k) - shift[f + i];
          }
        } else {
          for (std::ptrdiff_t i = 0; i < n; ++i) {
            rows[i] = i < present ? load<T>(source + offsets[i] + k) - shift[f + i] : Vec<T>{};
          }
        }
        transpose<T>(rows);
        store_rows<T>(rows, n, target, run.sums + f, run.squares + f);
      } else {
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          rows[i] = Vec<T>{};
          if (i < present) {
            rows[i] =
                gather<T>(source + offsets[i] + k * run.sample_stride, run.sample_stride, count) -
                shift[f + i];
          }
        }
        transpose<T>(rows);
        store_rows<T>(rows, count, target, run.sums + f, run.squares + f);
      }
    }
  }
}

// Features lie next to each other, all or in stretches: rows of features, as they are.
template <class T, class Source>
void pack_by_feature(const PackRun& run) {
  constexpr std::ptrdiff_t n = lanes<T>;
  const auto* source = static_cast<const Source*>(run.source);
  const auto* shift = static_cast<const T*>(run.shift);
  const std::ptrdiff_t padded = (run.features + panel_width - 1) / panel_width * panel_width;
  for (std::ptrdiff_t k = 0; k < run.samples; k += 16) {
    const std::ptrdiff_t count = run.samples - k < 16 ? run.samples - k : 16;
    const Source* const first = source + k * run.sample_stride;
    for (std::ptrdiff_t f = 0; f < padded; f += n) {
      const std::ptrdiff_t present = run.features - f < 0 ? 0 : run.features - f;
      T* const target = static_cast<T*>(run.target) + f / panel_width * run.panel_stride +
                        k * panel_width + f % panel_width;
      const Vec<T> shifts = load<T>(shift + f);
      Vec<T> rows[16];
      if (present >= n && run.adjacent[f] >= n) {
        const Source* const from = first + run.offsets[f];
        for (std::ptrdiff_t i = 0; i < count; ++i) {
          rows[i] = load<T>(from + i * run.sample_stride) - shifts;
        }
      } else {
        for (std::ptrdiff_t i = 0; i < count; ++i) {
          rows[i] = pick<T>(first + i * run.sample_stride, run.offsets + f, present) - shifts;
        }
      }
      store_rows<T>(rows, count, target, run.sums + f, run.squares + f);
    }
  }
}

template <class T, class Source>
void pack(const PackRun& run) {
  const bool side_by_side = run.adjacent[0] > 1;
  if (side_by_side && (run.adjacent[0] == run.features || run.sample_stride != 1)) {
    pack_by_feature<T, Source>(run);
  } else {
    pack_by_sample<T, Source>(run);
  }
}

// One register tile: M vectors of a's features against N of b's, over all samples. a[v] points at
// the vector's lanes in their panel, b at its N features in theirs.
template <class T, int M, int N>
CCAMERGE_INLINE void tile(std::ptrdiff_t samples, const T* const (&a)[M], const T* b, double* acc,
                          std::ptrdiff_t row_stride) {
  Vec<T> sum[N][M] = {};
  for (std::ptrdiff_t k = 0; k < samples; ++k) {
    Vec<T> left[M];
    for (int v = 0; v < M; ++v) left[v] = load<T>(a[v] + k * panel_width);
    for (int j = 0; j < N; ++j) {
      const T right = b[k * panel_width + j];
      for (int v = 0; v < M; ++v) sum[j][v] += left[v] * right;
    }
  }
  for (int j = 0; j < N; ++j) {
    for (int v = 0; v < M; ++v) {
      add_to_doubles<T>(acc + j * row_stride + v * lanes<T>, sum[j][v]);
    }
  }
}

// The products of N features of b, from j on, which stay in the nearest cache, with all of a.
template <class T, int N>
CCAMERGE_INLINE void columns(const PanelProduct& p, std::ptrdiff_t j) {
  constexpr std::ptrdiff_t n = lanes<T>;
  const auto a_at = [&](std::ptrdiff_t i) {
    return static_cast<const T*>(p.a) + i / panel_width * p.a_panel_stride + i % panel_width;
  };
  const T* const right =
      static_cast<const T*>(p.b) + j / panel_width * p.b_panel_stride + j % panel_width;
  for (std::ptrdiff_t i = 0; i < p.a_features; i += 2 * n) {
    double* const acc = p.acc + j * p.row_stride + i;
    const bool first = !p.upper || i + n > j;
    const bool second = i + n < p.a_features && (!p.upper || i + 2 * n > j);
    if (first && second) {
      tile<T, 2, N>(p.samples, {a_at(i), a_at(i + n)}, right, acc, p.row_stride);
    } else if (first) {
      tile<T, 1, N>(p.samples, {a_at(i)}, right, acc, p.row_stride);
    } else if (second) {
      tile<T, 1, N>(p.samples, {a_at(i + n)}, right, acc + n, p.row_stride);
    }
  }
}

// A panel is cut so that the sums stay in registers: 2 x 8 of 32, or 2 x 6 of 16.
template <class T>
void product(const PanelProduct& p) {
  for (std::ptrdiff_t j = 0; j < p.b_features; j += panel_width) {
    if constexpr (CCAMERGE_VECTOR == 64) {
      columns<T, 8>(p, j);
      columns<T, 8>(p, j + 8);
    } else {
      columns<T, 6>(p, j);
      columns<T, 5>(p, j + 6);
      columns<T, 5>(p, j + 11);
    }
  }
}

void flush_row(std::ptrdiff_t n, double* total, const double* acc, double u, const double* s,
               double w, const double* delta) {
  for (std::ptrdiff_t i = 0; i < n; ++i) total[i] += (acc[i] - u * s[i]) + w * delta[i];
}

}  // namespace

extern const Kernels table;
const Kernels table = {
    CCAMERGE_ISA_NAME,
    {pack<float, Half>, pack<float, Bfloat>, pack<float, float>, nullptr},
    {pack<double, Half>, pack<double, Bfloat>, pack<double, float>, pack<double, double>},
    product<float>,
    product<double>,
    flush_row,
};

}  // namespace ccamerge::CCAMERGE_ISA
