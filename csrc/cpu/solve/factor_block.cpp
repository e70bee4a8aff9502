// Cholesky factors of diagonal blocks, with their inverses.
#include <cmath>

#include "cpu/solve/backend.hpp"
#include "host/blas.hpp"

namespace ccamerge {
namespace {

constexpr int kLeaf = 16;  // below this, plain loops beat BLAS calls

// Cholesky factor of the small a (lower triangle in, full square with zeros above out) and the
// inverse x of the factor. Returns LAPACK's info. Row by row, so that inner products stay in
// registers; n <= kLeaf.
int factor_unblocked(View a, View x) {
  const int n = a.rows;
  double l[kLeaf][kLeaf] = {}, inverse[kLeaf][kLeaf] = {};
  for (int j = 0; j < n; ++j) {
    for (int i = j; i < n; ++i) l[j][i] = a.at(i, j);
  }
  for (int j = 0; j < n; ++j) {
    const double pivot = l[j][j];
    if (!(pivot > 0)) return j + 1;
    const double root = std::sqrt(pivot), scale = 1 / root;
    l[j][j] = root;
    for (int i = j + 1; i < n; ++i) l[j][i] *= scale;
    for (int k = j + 1; k < n; ++k) {
      for (int i = 0; i < kLeaf; ++i) l[k][i] -= l[j][k] * l[j][i];  // fixed length: unrolled
    }
    // Column j of the inverse's transpose: forward substitution, all right sides at once.
    inverse[j][j] = 1;
    for (int k = 0; k < j; ++k) {
      for (int i = 0; i < kLeaf; ++i) inverse[j][i] -= l[k][j] * inverse[k][i];
    }
    for (int i = 0; i < kLeaf; ++i) inverse[j][i] *= scale;
  }
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < n; ++i) {
      a.at(i, j) = i < j ? 0.0 : l[j][i];
      x.at(i, j) = i < j ? 0.0 : inverse[i][j];
    }
  }
  return 0;
}

// As factor_unblocked for n <= Cpu::block, by halves.
int factor_halves(View a, View x) {
  const int n = a.rows;
  if (n <= kLeaf) return factor_unblocked(a, x);
  const int h = (n / 2 + kLeaf - 1) / kLeaf * kLeaf, rest = n - h;
  const View a11 = a.block(0, 0, h, h), a21 = a.block(h, 0, rest, h),
             a22 = a.block(h, h, rest, rest);
  const View x11 = x.block(0, 0, h, h), x21 = x.block(h, 0, rest, h),
             x22 = x.block(h, h, rest, rest);
  int info = factor_halves(a11, x11);
  if (info != 0) return info;
  double scratch[Cpu::block * Cpu::block / 4];
  const View t{scratch, rest, h, rest};
  copy(a21, t);
  multiply(false, t, true, x11, a21);  // L21 = A21 L11^-T
  multiply(false, a21, true, a21, a22, -1.0, 1.0);
  info = factor_halves(a22, x22);
  if (info != 0) return info + h;
  multiply(false, a21, false, x11, t);  // the inverse's corner: -L22^-1 L21 L11^-1
  multiply(false, x22, false, t, x21, -1.0);
  set_zero(a.block(0, h, h, rest));
  set_zero(x.block(0, h, h, rest));
  return 0;
}

}  // namespace

void Cpu::factor_block(View a, View inverse, int at, Info& info) {
  for (int k = 0; k < a.count; ++k) {
    int& first = info[static_cast<std::size_t>(k)];
    if (first != 0) continue;  // what it would work on is undefined
    const int failed = factor_halves(a.member(k), inverse.member(k));
    if (failed != 0) first = at + failed;
  }
}

}  // namespace ccamerge
