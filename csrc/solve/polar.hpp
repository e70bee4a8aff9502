// The orthonormal polar factors of matrices: the nearest matrices with orthonormal columns (or
// rows).
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "host/singular.hpp"
#include "solve/backend.hpp"
#include "solve/covariance.hpp"
#include "solve/norms.hpp"
#include "solve/operands.hpp"
#include "solve/qdwh.hpp"

namespace ccamerge {

enum class PolarMethod { qdwh, svd };

template <Backend B>
struct Polar {
  typename B::Matrix q;  // (m, n) like the input; min(m, n) singular values of one
  std::vector<int> rank;
  std::vector<PolarMethod> method;
};

// a (m, n), finite. Singular values at or below rank_tolerance * (the largest) count as zero; there
// the factor is not unique, and the one nearest the identity among the choices is returned:
// U1 V1^T + U2 polar(U2^T I V2) V2^T, with the null spaces U2, V2 and I = eye(m, n). A tolerance
// below max(m, n) * eps means that. NumericalError if an SVD does not converge. Memory grows as the
// matrices do, never as the square of their longer side.
template <Backend B>
Polar<B> polar(B& b, ConstView a, const Coefficients& rank_tolerance = 0.0);

template <Backend B>
struct PolarFactor {
  typename B::Matrix q;
  int rank = 0;
  PolarMethod method = PolarMethod::qdwh;
};

// Of many matrices, each of one member and named, in parallel; std::invalid_argument, naming the
// matrix, unless every entry is finite.
template <Backend B>
std::vector<PolarFactor<B>> solve_polar(B& b, const std::vector<ConstView>& matrices,
                                        const std::vector<std::string>& names);

namespace detail {

// The entries that are not zero rows or columns, as dead units leave them.
struct Alive {
  std::vector<int> rows, cols;

  bool all(ConstView a) const {
    return static_cast<int>(rows.size()) == a.rows && static_cast<int>(cols.size()) == a.cols;
  }
};

template <Backend B>
Matrix on_host(B& b, ConstView a) {
  Matrix out(a.rows, a.cols);
  b.download(a, out.data());
  return out;
}

// Whether a member has no singular value that counts as zero, as far as the iteration tells.
template <Backend B>
bool regular(const Qdwh<B>& found, std::size_t member, double rank_tolerance) {
  return found.converged[member] && found.least[member] > rank_tolerance;
}

// The polar factor of one a with zero rows or columns: of the rest, then linked. False if the rest
// is rank-deficient too.
template <Backend B>
bool polar_of_alive(B& b, ConstView a, const Alive& alive, double rank_tolerance, View q) {
  const bool tall = a.rows >= a.cols;
  // Of the shorter side; its coordinates that are left are alive or missing in the rest's factor.
  const std::vector<int>& own = tall ? alive.cols : alive.rows;
  const std::size_t other = tall ? alive.rows.size() : alive.cols.size();
  b.combine(q, 0.0);
  Matrix missing;
  if (other > 0) {
    auto rest = b.matrix(static_cast<int>(alive.rows.size()), static_cast<int>(alive.cols.size()));
    b.gather(a, alive.rows, alive.cols, rest.view());
    const Qdwh<B> found = qdwh(b, rest.view());
    if (!regular(found, 0, rank_tolerance)) return false;
    b.scatter(found.q.view(), alive.rows, alive.cols, q);
    if (other < own.size()) {
      const Matrix side = on_host(b, found.q.view());
      missing = complement_of(tall ? transpose_of(side.view()).view() : side.view());
    }
  }
  const Matrix basis = null_space(std::min(a.rows, a.cols), own, missing);
  if (basis.cols() == 0) return true;
  Matrix host = on_host(b, q);
  if (!tall) host = transpose_of(host.view());
  link_null_spaces(host.view(), basis.view());
  if (!tall) host = transpose_of(host.view());
  b.upload(host.data(), q);
  return true;
}

}  // namespace detail

template <Backend B>
Polar<B> polar(B& b, ConstView a, const Coefficients& rank_tolerance) {
  const int m = a.rows, n = a.cols;
  const auto count = static_cast<std::size_t>(a.count);
  auto turned = transpose_of(b, a);
  const std::vector<ColumnSums> cols = b.column_sums(a), rows = b.column_sums(turned.view());
  std::vector<detail::Alive> parts;
  std::vector<double> norms =
      m >= n ? frobenius_norms(b, a, cols) : frobenius_norms(b, turned.view(), rows);
  for (int k = 0; k < a.count; ++k) {
    parts.push_back({alive(member_columns(rows, m, k)), alive(member_columns(cols, n, k))});
    if (!parts.back().all(a)) norms[static_cast<std::size_t>(k)] = 0;  // solved by itself below
  }
  if (m >= n) turned = {};
  Qdwh<B> found = qdwh_tall(b, m >= n ? a : ConstView(turned.view()), norms);
  Polar<B> out{std::move(found.q), std::vector<int>(count, std::min(m, n)),
               std::vector<PolarMethod>(count, PolarMethod::qdwh)};
  if (out.q.empty()) {
    out.q = b.matrix(m, n, a.count);
  } else if (m < n) {
    out.q = transpose_of(b, out.q.view());
  }
  for (std::size_t k = 0; k < count; ++k) {
    const int member = static_cast<int>(k);
    const double tolerance = rank_tolerance[member];
    if (detail::regular(found, k, tolerance)) continue;
    const View q = out.q.view().member(member);
    if (!parts[k].all(a) && detail::polar_of_alive(b, a.member(member), parts[k], tolerance, q)) {
      out.rank[k] = static_cast<int>(std::min(parts[k].rows.size(), parts[k].cols.size()));
      continue;
    }
    const double least = std::max(m, n) * std::numeric_limits<double>::epsilon();
    const SvdPolar svd =
        polar_by_svd(detail::on_host(b, a.member(member)), std::max(tolerance, least));
    b.upload(svd.q.data(), q);
    out.rank[k] = svd.rank;
    out.method[k] = PolarMethod::svd;
  }
  return out;
}

template <Backend B>
std::vector<PolarFactor<B>> solve_polar(B& b, const std::vector<ConstView>& matrices,
                                        const std::vector<std::string>& names) {
  std::vector<WorkItem> items;
  for (const ConstView a : matrices) {
    const double size = static_cast<double>(a.rows) * a.cols;
    items.push_back(
        {{a.rows, a.cols, 0}, size * std::min(a.rows, a.cols), 8 * static_cast<std::size_t>(size)});
  }
  std::vector<PolarFactor<B>> out(matrices.size());
  b.groups(items, [&](const std::vector<std::size_t>& group) {
    const Gathered<B> a(b, picked(matrices, group));
    check_finite(b, a.view(), picked(names, group));
    Polar<B> found = polar(b, a.view());
    std::vector<typename B::Matrix> q = b.split(std::move(found.q));
    for (std::size_t k = 0; k < group.size(); ++k) {
      out[group[k]] = {std::move(q[k]), found.rank[k], found.method[k]};
    }
  });
  return out;
}

}  // namespace ccamerge
