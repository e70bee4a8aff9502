// Thin singular value decompositions from polar factors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "host/singular.hpp"
#include "solve/backend.hpp"
#include "solve/operands.hpp"

namespace ccamerge {

template <Backend B>
struct ThinSvd {
  typename B::Matrix u;  // (m, k), k = min(m, n); empty without vectors
  typename B::Matrix s;  // (k, 1), descending
  typename B::Matrix v;  // (n, k)
};

// a = U S V^T from the polar factors q of a, by the eigenvectors of the Hermitian factor
// (Nakatsukasa & Higham 2013). Values above `most` become that. NumericalError if those do not
// converge.
template <Backend B>
ThinSvd<B> svd_from_polar(B& b, ConstView a, ConstView q, bool vectors, double most) {
  // a = q h for a tall a, a = h q for a wide one, h symmetric positive semidefinite.
  const bool tall = a.rows >= a.cols;
  const int k = std::min(a.rows, a.cols);
  auto h = b.matrix(k, k, a.count), w = b.matrix(k, 1, a.count);
  if (tall) {
    b.multiply(true, q, false, a, h.view());
  } else {
    b.multiply(false, a, true, q, h.view());
  }
  b.symmetrise(h.view());
  for (const int info : b.eigh(vectors, h.view(), w.view())) {
    if (info != 0) svd_did_not_converge(a.rows, a.cols);
  }
  std::vector<double> values = downloaded(b, w.view());
  for (auto first = values.begin(); first != values.end(); first += k) {
    std::reverse(first, first + k);
    std::transform(first, first + k, first, [=](double s) { return std::clamp(s, 0.0, most); });
  }
  ThinSvd<B> out;
  out.s = std::move(w);
  b.upload(values.data(), out.s.view());
  if (!vectors) return out;
  auto inner = b.matrix(k, k, a.count), outer = b.matrix(tall ? a.rows : a.cols, k, a.count);
  b.reverse_columns(h.view(), inner.view());
  b.multiply(!tall, q, false, inner.view(), outer.view());
  out.u = std::move(tall ? outer : inner);
  out.v = std::move(tall ? inner : outer);
  return out;
}

}  // namespace ccamerge
