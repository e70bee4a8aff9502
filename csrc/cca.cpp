#include "cca.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "parallel.hpp"

namespace ccamerge {
namespace {

// The covariances that occur in a batch, each once.
class Covariances {
 public:
  std::size_t add(ConstView s, const std::string& name) {
    const auto [it, fresh] = index_.try_emplace({s.data, s.rows}, entries_.size());
    if (fresh) entries_.push_back({s, name, Matrix()});
    return it->second;
  }

  // Checks all and factors each with every regulariser.
  void factor(const std::vector<Regulariser>& regularisers) {
    parallel_for(entries_.size(), [&](std::size_t i) {
      entries_[i].checked = checked_covariance(entries_[i].s, entries_[i].name);
    });
    values_ = regularisers.size();
    factors_.resize(entries_.size() * values_);
    parallel_for(factors_.size(), [&](std::size_t i) {
      const Entry& entry = entries_[i / values_];
      factors_[i] = factor_covariance(entry.checked.view(), regularisers[i % values_], entry.name);
    });
  }

  const FactoredCovariance& get(std::size_t covariance, std::size_t value) const {
    return *factors_[covariance * values_ + value];
  }

 private:
  struct Entry {
    ConstView s;
    std::string name;
    Matrix checked;
  };
  std::map<std::pair<const double*, int>, std::size_t> index_;
  std::vector<Entry> entries_;
  std::vector<std::optional<FactoredCovariance>> factors_;
  std::size_t values_ = 0;
};

CcaSolution solve_one(ConstView syx, const FactoredCovariance& x, const FactoredCovariance& y,
                      const CcaOptions& options) {
  CcaSolution out;
  out.x_condition = x.condition;
  out.y_condition = y.condition;

  Matrix k = copy_of(syx);  // (q, p), becomes K^T
  y.factor.solve_left(k.view());
  x.factor.solve_right_transposed(k.view());
  poll_interrupt();

  // K = Lx^-1 Sxy Ly^-T carries the rounding errors of Sxy, enlarged by both inverses; singular
  // values below that are noise.
  const double solve_error =
      8 * std::numeric_limits<double>::epsilon() * std::sqrt(x.condition * y.condition);
  const bool decompose = options.correlations || options.weights;
  Polar p = polar(decompose ? copy_of(k.view()) : std::move(k), solve_error);
  out.rank = p.rank;
  out.method = p.method;
  poll_interrupt();

  if (decompose) {
    ThinSvd svd = svd_from_polar(k.view(), p.q.view(), options.weights);
    out.correlations = std::move(svd.s);
    if (options.weights) {
      out.x_weights = transpose_of(svd.v.view());
      x.factor.solve_right(out.x_weights.view());
      out.y_weights = transpose_of(svd.u.view());
      y.factor.solve_right(out.y_weights.view());
    }
  }
  out.map = transpose_of(p.q.view());
  x.factor.multiply_left(out.map.view());
  y.factor.solve_right(out.map.view());
  out.inverse = std::move(p.q);
  y.factor.multiply_left(out.inverse.view());
  x.factor.solve_right(out.inverse.view());
  return out;
}

}  // namespace

std::vector<CcaSolution> solve_cca(const std::vector<CcaProblem>& problems,
                                   const std::vector<std::string>& names,
                                   const std::vector<Regulariser>& regularisers,
                                   const CcaOptions& options) {
  const BufferScope recycle;
  Covariances covariances;
  std::vector<std::pair<std::size_t, std::size_t>> sides;  // of each problem: x, y
  for (std::size_t i = 0; i < problems.size(); ++i) {
    const std::size_t x = covariances.add(problems[i].sxx, names[i] + "Sxx");
    sides.emplace_back(x, covariances.add(problems[i].syy, names[i] + "Syy"));
  }
  covariances.factor(regularisers);

  // Longest first, so that no thread is left with a long task at the end.
  std::vector<std::size_t> order(problems.size() * regularisers.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto cost = [&](std::size_t task) {
    const ConstView s = problems[task / regularisers.size()].syx;
    return static_cast<double>(s.rows) * s.cols * (s.rows + s.cols);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return cost(a) > cost(b); });

  std::vector<CcaSolution> out(order.size());
  parallel_for(order.size(), [&](std::size_t turn) {
    const std::size_t task = order[turn], i = task / regularisers.size(),
                      value = task % regularisers.size();
    check_finite(problems[i].syx, names[i] + "Sxy");
    out[task] = solve_one(problems[i].syx, covariances.get(sides[i].first, value),
                          covariances.get(sides[i].second, value), options);
  });
  return out;
}

}  // namespace ccamerge
