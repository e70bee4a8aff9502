// The solver without Python: what a sanitizer should see of it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/check.hpp"
#include "common/parallel.hpp"
#include "cpu/solve/instances.hpp"
#include "testing.hpp"

using namespace ccamerge;

namespace {

void expect(bool ok, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

void expect_below(double value, double bound, const std::string& what) {
  expect(value <= bound, what + ": " + std::to_string(value / bound) + " times the bound");
}

Matrix random(int m, int n, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Matrix out(m, n);
  for (std::size_t i = 0; i < out.size(); ++i) out.data()[i] = normal(generator);
  return out;
}

Matrix product(bool trans_a, const Matrix& a, bool trans_b, const Matrix& b) {
  Matrix out(trans_a ? a.cols() : a.rows(), trans_b ? b.rows() : b.cols());
  multiply(trans_a, a.view(), trans_b, b.view(), out.view());
  return out;
}

double distance(const Matrix& a, const Matrix& b) {
  Matrix difference = copy_of(a.view());
  for (std::size_t i = 0; i < a.size(); ++i) difference.data()[i] -= b.data()[i];
  return frobenius_norm(difference.view());
}

// (samples, d) random features give a well-conditioned covariance.
Matrix covariance(int d, unsigned seed) {
  const Matrix x = random(4 * d + 4, d, seed);
  Matrix s = product(true, x, false, x);
  for (std::size_t i = 0; i < s.size(); ++i) s.data()[i] /= 4 * d + 4;
  return s;
}

void test_cholesky() {
  for (const int n : {1, 2, 15, 16, 17, 32, 33, 63, 64, 65, 97, 130, 257}) {
    const std::string at = " at order " + std::to_string(n);
    const Matrix s = covariance(n, 1);
    Cpu cpu;
    const Cholesky<Cpu> cholesky(cpu, copy_of(s.view()));
    expect(cholesky.info().front() == 0, "factorisation" + at);
    const Triangular<Cpu> factor = cholesky.factor();
    Matrix l = copy_of(factor.lower());
    for (int j = 1; j < n; ++j) {
      for (int i = 0; i < j; ++i) l.at(i, j) = 0;
    }
    expect_below(distance(product(false, l, true, l), s), 1e-14 * n, "L L^T" + at);
    const Matrix wide = random(n, n + 3, 2), tall = random(n + 3, n, 3);
    const double bound = 1e-13 * n * frobenius_norm(wide.view());

    Matrix b = copy_of(wide.view());
    factor.solve_left(b.view());
    expect_below(distance(product(false, l, false, b), wide), bound, "L^-1 b" + at);
    factor.multiply_left(b.view());
    expect_below(distance(b, wide), bound, "L b" + at);
    b = copy_of(wide.view());
    factor.solve_left_transposed(b.view());
    expect_below(distance(product(true, l, false, b), wide), bound, "L^-T b" + at);
    b = copy_of(tall.view());
    factor.solve_right(b.view());
    expect_below(distance(product(false, b, false, l), tall), bound, "b L^-1" + at);
    b = copy_of(tall.view());
    factor.solve_right_transposed(b.view());
    expect_below(distance(product(false, b, true, l), tall), bound, "b L^-T" + at);

    // Not positive definite from row k on, which info must name.
    for (const int k : {0, n / 2, n - 1}) {
      Matrix broken = copy_of(s.view());
      broken.at(k, k) = -1;
      const Cholesky<Cpu> failed(cpu, std::move(broken));
      expect(failed.info().front() == k + 1, "info" + at);
    }
  }
}

void test_polar() {
  Cpu cpu;
  const std::pair<int, int> shapes[] = {{1, 1}, {5, 3}, {3, 5}, {70, 70}, {130, 40}, {200, 200}};
  for (const auto& [m, n] : shapes) {
    const std::string at = " of " + std::to_string(m) + " by " + std::to_string(n);
    const Matrix a = random(m, n, 4);
    const Polar<Cpu> p = polar(cpu, a.view());
    const bool tall = m >= n;
    const Matrix gram = product(tall, p.q, !tall, p.q);
    expect_below(distance(gram, eye(gram.rows(), gram.rows())), 1e-12, "orthonormal" + at);
    const Matrix h = tall ? product(true, p.q, false, a) : product(false, a, true, p.q);
    expect_below(distance(h, transpose_of(h.view())), 1e-10, "symmetric" + at);
    expect(p.rank.front() == std::min(m, n) && p.method.front() == PolarMethod::qdwh, "route" + at);
  }
  Matrix deficient = random(30, 30, 5);  // two columns twice, one row zero
  for (int i = 0; i < 30; ++i) {
    deficient.at(i, 4) = deficient.at(i, 9);
    deficient.at(i, 5) = deficient.at(i, 10);
  }
  for (int j = 0; j < 30; ++j) deficient.at(7, j) = 0;
  const Polar<Cpu> p = polar(cpu, deficient.view());
  expect(p.method.front() == PolarMethod::svd && p.rank.front() == 28,
         "rank-deficient: rank " + std::to_string(p.rank.front()));
  expect_below(distance(product(true, p.q, false, p.q), eye(30, 30)), 1e-12, "completed");
}

void test_cca() {
  Cpu cpu;
  std::vector<CcaProblem> problems;
  std::vector<std::string> names;
  std::vector<Matrix> storage;
  const std::pair<int, int> sizes[] = {{20, 20}, {65, 33}, {1, 4}, {20, 140}};
  for (const auto& [p, q] : sizes) {
    const Matrix joint = covariance(p + q, 6);
    storage.push_back(copy_of(joint.view().block(0, 0, p, p)));
    storage.push_back(copy_of(joint.view().block(p, p, q, q)));
    storage.push_back(copy_of(joint.view().block(p, 0, q, p)));
  }
  for (std::size_t i = 0; i < std::size(sizes); ++i) {
    problems.push_back(
        {storage[3 * i].view(), storage[3 * i + 1].view(), storage[3 * i + 2].view()});
    names.push_back("problems[" + std::to_string(i) + "]: ");
  }
  const std::vector<Regulariser> values = {{0.0, true}, {0.5, false}};
  std::vector<CcaSolution<Cpu>> first;
  for (const int threads : {1, 3}) {
    set_num_threads(threads);
    auto solutions = solve_cca(cpu, problems, names, values, {true, true});
    expect(solutions.size() == 8, "problem-major results");
    for (std::size_t i = 0; i < solutions.size(); ++i) {
      const CcaSolution<Cpu>& s = solutions[i];
      const int p = problems[i / 2].sxx.rows, q = problems[i / 2].syy.rows;
      // Stored transposed: inverse^T map^T... is the identity on the smaller side.
      const Matrix unit = p <= q ? product(false, s.map, false, s.inverse)
                                 : product(false, s.inverse, false, s.map);
      expect_below(distance(unit, eye(unit.rows(), unit.rows())), 1e-9, "inverse");
      expect(s.correlations.rows() == std::min(p, q) && s.correlations.at(0, 0) <= 1 + 1e-12,
             "correlations");
      if (threads > 1) expect(distance(s.map, first[i].map) == 0, "thread count changes nothing");
    }
    if (threads == 1) first = std::move(solutions);
  }

  storage[4].at(3, 3) = -5;
  try {
    solve_cca(cpu, problems, names, values, {});
    expect(false, "an indefinite covariance is refused");
  } catch (const NumericalError& e) {
    expect(std::string(e.what()).find("problems[1]: Syy") == 0, e.what());
  }
  storage[4].at(3, 3) = NAN;
  try {
    solve_cca(cpu, problems, names, values, {});
    expect(false, "NaN is refused");
  } catch (const std::invalid_argument& e) {
    expect(std::string(e.what()).find("problems[1]: Syy must be finite") == 0, e.what());
  }
}

void test_gevp() {
  Cpu cpu;
  const Matrix a = covariance(50, 7), b = covariance(50, 8);
  for (const int k : {1, 10, 50}) {
    const auto out = solve_gevp(cpu, {{a.view(), b.view(), k}}, {""}, {0.0, true});
    const Matrix v = transpose_of(out[0].vectors.view());  // (n, k)
    Matrix right = product(false, b, false, v);
    for (int j = 0; j < k; ++j) {
      for (int i = 0; i < 50; ++i) right.at(i, j) *= out[0].values.at(j, 0);
    }
    expect_below(distance(product(false, a, false, v), right), 1e-10, "A v = w B v");
  }
}

void test_whiten() {
  Cpu cpu;
  const Matrix s = covariance(70, 9);
  for (const auto kind : {WhiteningKind::symmetric, WhiteningKind::cholesky}) {
    const Whitening<Cpu> w = whiten(cpu, {s.view()}, {0.0, true}, kind, {"S"});
    const Matrix unit = product(true, w.w, false, product(false, s, false, w.w));
    expect_below(distance(unit, eye(70, 70)), 1e-11, "whitened");
  }
}

// Refused before anything of such a size is read or allocated.
void test_orders_beyond_workspace() {
  Cpu cpu;
  const int n = Cpu::most_eigenvectors + 1;
  const ConstView large{nullptr, n, n, n};
  const auto refused = [](const auto& solve, const std::string& name) {
    std::string message;
    try {
      solve();
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    expect(message.rfind(name + " has order 32767", 0) == 0, name + ": " + message);
  };
  refused([&] { whiten(cpu, {large}, {}, WhiteningKind::symmetric, {"S"}); }, "S");
  refused([&] { solve_gevp(cpu, {{large, large, n}}, {"problems[1]: "}, {}); }, "problems[1]: A");
  refused([&] { solve_cca(cpu, {{large, large, large}}, {""}, {{}}, {true, true}); }, "Sxy");
}

}  // namespace

int main() {
  testing::bind_blas();
  test_cholesky();
  test_polar();
  test_cca();
  test_gevp();
  test_whiten();
  test_orders_beyond_workspace();
  std::puts("ok");
}
