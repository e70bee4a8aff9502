#include "gevp.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include "blas.hpp"
#include "check.hpp"
#include "parallel.hpp"

namespace ccamerge {
namespace {

void fix_sign(double* v, int n) {
  int largest = 0;
  for (int i = 1; i < n; ++i) {
    if (std::abs(v[i]) > std::abs(v[largest])) largest = i;
  }
  if (v[largest] < 0) {
    for (int i = 0; i < n; ++i) v[i] = -v[i];
  }
}

GevpSolution solve_one(const GevpProblem& problem, const std::string& name,
                       const Regulariser& regulariser) {
  const int n = problem.a.rows, k = problem.k;
  Matrix c = checked_covariance(problem.a, name + "A");
  const Matrix b = checked_covariance(problem.b, name + "B");
  const FactoredCovariance right = factor_covariance(b.view(), regulariser, name + "B");
  right.factor.solve_left(c.view());
  right.factor.solve_right_transposed(c.view());  // L^-1 A L^-T
  poll_interrupt();

  std::vector<double> w(static_cast<std::size_t>(n));
  Matrix some;  // ascending eigenvectors in columns
  // Divide and conquer is faster for all of them, and for most.
  const bool all = 2 * k > n;
  int info = 0;
  if (all) {
    info = blas::syevd(true, n, c.data(), n, w.data());
  } else {
    some = Matrix(n, k);
    info = blas::syevr(n, c.data(), n, n - k + 1, n, w.data(), some.data(), n);
  }
  if (info != 0) {
    throw NumericalError(name + "the eigendecomposition did not converge; raise the ridge");
  }
  const ConstView last = all ? ConstView(c.view()).block(0, n - k, n, k) : some.view();
  const double* top = all ? w.data() + (n - k) : w.data();

  GevpSolution out;
  out.values = Matrix(k, 1);
  Matrix z(n, k);
  for (int j = 0; j < k; ++j) {
    out.values.at(j, 0) = top[k - 1 - j];
    std::copy_n(last.col(k - 1 - j), n, z.view().col(j));
  }
  right.factor.solve_left_transposed(z.view());
  for (int j = 0; j < k; ++j) fix_sign(z.view().col(j), n);
  out.vectors = transpose_of(z.view());
  return out;
}

}  // namespace

std::vector<GevpSolution> solve_gevp(const std::vector<GevpProblem>& problems,
                                     const std::vector<std::string>& names,
                                     const Regulariser& regulariser) {
  std::vector<std::size_t> order(problems.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) {
    return problems[i].a.rows > problems[j].a.rows;
  });
  const BufferScope recycle;
  std::vector<GevpSolution> out(problems.size());
  parallel_for(order.size(), [&](std::size_t turn) {
    const std::size_t i = order[turn];
    out[i] = solve_one(problems[i], names[i], regulariser);
  });
  return out;
}

}  // namespace ccamerge
