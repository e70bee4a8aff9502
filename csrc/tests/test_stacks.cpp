// Stacks in lock-step give what their members give alone; no Python, for the sanitizers too.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/check.hpp"
#include "cpu/solve/instances.hpp"
#include "stacking.hpp"
#include "testing.hpp"

using namespace ccamerge;

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

Matrix random(int m, int n, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Matrix out(m, n);
  for (std::size_t i = 0; i < out.size(); ++i) out.data()[i] = normal(generator);
  return out;
}

// Orthonormal columns (m, n), m >= n.
Matrix orthonormal(int m, int n, unsigned seed) {
  Cpu cpu;
  return std::move(polar(cpu, random(m, n, seed).view()).q);
}

// Singular values falling geometrically from 1 to `least`.
Matrix with_spread(int m, int n, double least, unsigned seed) {
  const int k = std::min(m, n);
  Matrix u = orthonormal(m, k, seed), out(m, n);
  const Matrix v = orthonormal(n, k, seed + 1);
  for (int j = 0; j < k; ++j) {
    const double s = std::pow(least, k > 1 ? static_cast<double>(j) / (k - 1) : 0.0);
    for (int i = 0; i < m; ++i) u.at(i, j) *= s;
  }
  multiply(false, u.view(), true, v.view(), out.view());
  return out;
}

Matrix covariance(int n, double least, unsigned seed) {
  const Matrix root = with_spread(n, n, std::sqrt(least), seed);
  Matrix out(n, n);
  multiply(false, root.view(), true, root.view(), out.view());
  return out;
}

double distance(ConstView a, ConstView b) {
  EXPECT(a.rows == b.rows && a.cols == b.cols);
  Matrix difference = copy_of(a);
  for (int j = 0; j < a.cols; ++j) {
    for (int i = 0; i < a.rows; ++i) difference.at(i, j) -= b.at(i, j);
  }
  return frobenius_norm(difference.view());
}

std::vector<ConstView> views(const std::vector<Matrix>& matrices) { return views_of(matrices); }

// Every primitive that has more than one member to lose.
void primitives() {
  Cpu cpu;
  std::vector<Matrix> as, bs;
  for (unsigned k = 0; k < 3; ++k) {
    as.push_back(random(37, 37, 10 + k));
    bs.push_back(random(37, 37, 20 + k));
  }
  const Matrix a = cpu.stack(views(as)), b = cpu.stack(views(bs));
  const std::vector<double> alpha = {2, 0, 1}, beta = {0, -1, 0.5}, shift = {0, 3, -1};
  for (const Part part : {Part::full, Part::lower}) {
    Matrix c = copy_of(cpu, b.view()), onto = copy_of(cpu, a.view());
    cpu.combine(c.view(), alpha, a.view(), beta, b.view(), shift, part);
    cpu.combine(onto.view(), alpha, onto.view(), beta, b.view(), shift, part);
    for (int k = 0; k < 3; ++k) {
      for (int j = 0; j < 37; ++j) {
        for (int i = 0; i < 37; ++i) {
          const auto at = static_cast<std::size_t>(k);
          const double want =
              alpha[at] * as[at].at(i, j) + beta[at] * bs[at].at(i, j) + (i == j ? shift[at] : 0);
          const bool touched = part == Part::full || i >= j;
          EXPECT(std::abs(c.view().member(k).at(i, j) - (touched ? want : bs[at].at(i, j))) <
                 1e-14);
          EXPECT(std::abs(onto.view().member(k).at(i, j) - (touched ? want : as[at].at(i, j))) <
                 1e-14);
        }
      }
    }
  }
  const std::vector<Matrix> apart = cpu.split(copy_of(cpu, a.view()));
  std::vector<double> host = downloaded(cpu, a.view());
  Matrix back = cpu.matrix(37, 37, 3);
  cpu.upload(host.data(), back.view());
  std::reverse(host.begin(), host.end());
  cpu.scale_columns(back.view(), std::vector<double>(3 * 37, 2.0));
  const auto inner = cpu.inner(a.view(), back.view());
  for (std::size_t k = 0; k < 3; ++k) {
    EXPECT(distance(apart[k].view(), as[k].view()) == 0);
    const double norm = frobenius_norm(as[k].view());
    EXPECT(std::abs(inner[k] / (2 * norm * norm) - 1) < 1e-14);
  }
  Matrix reversed = cpu.matrix(37, 37, 3), symmetric = copy_of(cpu, a.view());
  cpu.reverse_columns(a.view(), reversed.view());
  EXPECT(reversed.view().member(2).at(5, 0) == as[2].at(5, 36));
  const auto symmetry = cpu.symmetrise(symmetric.view());
  EXPECT(symmetric.view().member(1).at(2, 35) == 0.5 * as[1].at(2, 35) + 0.5 * as[1].at(35, 2));
  EXPECT(symmetry[1].largest >= std::abs(as[1].at(0, 0)) && symmetry[1].apart > 0);

  // Sums of the symmetric part from its lower triangle alone, and whole.
  const auto whole = cpu.column_sums(symmetric.view());
  for (int k = 0; k < 3; ++k) {
    for (int j = 1; j < 37; ++j) {
      for (int i = 0; i < j; ++i) symmetric.view().member(k).at(i, j) = NAN;
    }
  }
  const auto half = cpu.column_sums(symmetric.view(), Part::lower);
  for (std::size_t j = 0; j < whole.size(); ++j) {
    EXPECT(std::abs(whole[j].absolute - half[j].absolute) < 1e-12);
    EXPECT(std::abs(whole[j].off_squares - half[j].off_squares) < 1e-12);
    EXPECT(whole[j].diagonal == half[j].diagonal && whole[j].largest == half[j].largest);
  }
  const auto broken = cpu.column_sums(symmetric.view());
  EXPECT(all_finite(member_columns(whole, 37, 1)) && !all_finite(member_columns(broken, 37, 1)));
}

void norms() {
  Cpu cpu;
  std::vector<Matrix> members;
  for (const double scale : {1.0, 1e-200, 1e200, 0.0, 5e-324}) {
    members.push_back(random(9, 4, 3));
    for (std::size_t i = 0; i < members.back().size(); ++i) members.back().data()[i] *= scale;
  }
  const auto found = frobenius_norms(cpu, cpu.stack(views(members)).view());
  for (std::size_t k = 0; k < 4; ++k) {
    EXPECT(std::abs(found[k] - frobenius_norm(members[k].view())) <= 1e-14 * found[k]);
  }
  EXPECT(found[4] >= frobenius_norm(members[4].view()) && found[4] < 1e-320);
}

void cholesky() {
  Cpu cpu;
  for (const int n : {1, 16, 17, 33, 64, 97, 130}) {
    std::vector<Matrix> members;
    for (unsigned k = 0; k < 4; ++k) members.push_back(covariance(n, std::pow(10.0, -3.0 * k), k));
    members[1].at(n / 2, n / 2) = -1;
    const Cholesky<Cpu> all(cpu, cpu.stack(views(members)));
    const Matrix rhs = random(n, 5, 9), flat = random(5, n, 9);
    const auto solved = [&](const Triangular<Cpu>& factor, int count) {
      std::vector<Matrix> out;
      for (int form = 0; form < 5; ++form) {
        Matrix x = copy_of(cpu, repeated(form < 3 ? rhs.view() : flat.view(), count));
        if (form == 0) factor.solve_left(x.view());
        if (form == 1) factor.solve_left_transposed(x.view());
        if (form == 2) factor.multiply_left(x.view());
        if (form == 3) factor.solve_right(x.view());
        if (form == 4) factor.solve_right_transposed(x.view());
        out.push_back(std::move(x));
      }
      return out;
    };
    const std::vector<Matrix> together = solved(all.factor(), 4);
    for (int k = 0; k < 4; ++k) {
      const auto at = static_cast<std::size_t>(k);
      const Cholesky<Cpu> one(cpu, copy_of(members[at].view()));
      EXPECT(all.info()[at] == one.info().front());
      EXPECT(all.info()[at] == (k == 1 ? n / 2 + 1 : 0));
      if (k == 1) continue;
      const std::vector<Matrix> alone = solved(one.factor(), 1);
      for (std::size_t form = 0; form < alone.size(); ++form) {
        EXPECT(distance(together[form].view().member(k), alone[form].view()) == 0);
      }
    }
  }
}

// ||inverse||_1, from the inverse itself.
double true_inverse_norm(const Matrix& s) {
  Cpu cpu;
  const Cholesky<Cpu> factor(cpu, copy_of(s.view()));
  Matrix inverse = eye(s.rows(), s.rows());
  factor.factor().solve_left(inverse.view());
  factor.factor().solve_left_transposed(inverse.view());
  return norm1(cpu.column_sums(inverse.view()));
}

void inverse_norms_are_bounds() {
  Cpu cpu;
  for (const int n : {1, 2, 3, 40, 129}) {
    std::vector<Matrix> members;
    for (unsigned k = 0; k < 12; ++k) members.push_back(covariance(n, std::pow(10.0, -0.9 * k), k));
    members.push_back(eye(n, n));
    members.push_back(eye(n, n));
    members.back().at(n - 1, n - 1) = 1e-9;  // one column holds all
    const Cholesky<Cpu> factor(cpu, cpu.stack(views(members)));
    const auto found = inverse_norms(cpu, factor.factor(), static_cast<int>(members.size()));
    for (std::size_t k = 0; k < members.size(); ++k) {
      const double truth = true_inverse_norm(members[k]);
      EXPECT(found[k] <= truth * (1 + 1e-4) && found[k] >= truth / 3);
      const Cholesky<Cpu> one(cpu, copy_of(members[k].view()));
      EXPECT(found[k] == inverse_norms(cpu, one.factor(), 1).front());
    }
  }
}

void polar_factors() {
  Cpu cpu;
  for (const auto& [m, n] : {std::pair{60, 60}, {90, 35}, {35, 90}, {3, 3}, {1, 1}}) {
    std::vector<Matrix> members;
    std::vector<double> least;  // singular value, of those that are alive
    for (const double spread : {1.0, 1e-2, 1e-5, 1e-12}) {
      members.push_back(with_spread(m, n, spread, 7));
      least.push_back(n > 1 ? spread : 1);
    }
    members.push_back(with_spread(m, n, 0.1, 8));  // dead rows
    members.push_back(with_spread(m, n, 0.1, 9));  // dead columns
    members.push_back(random(m, n, 10));           // both, and deficient besides
    members.push_back(Matrix(m, n));               // nothing at all
    for (int j = 0; j < n; ++j) members[4].at(m / 2, j) = members[6].at(m / 3, j) = 0;
    for (int i = 0; i < m; ++i) members[5].at(i, n / 3) = members[6].at(i, 0) = 0;
    for (int i = 0; i < m && n > 2; ++i) members[6].at(i, 1) = members[6].at(i, 2);
    set_zero(members[7].view());
    members.push_back(random(m, n, 11));
    for (std::size_t i = 0; i < members[8].size(); ++i) members[8].data()[i] *= 1e-250;
    const std::vector<double> tolerance = {0, 0, 0, 0, 0, 0, 1e-9, 0, 0};
    const Polar<Cpu> all = polar(cpu, cpu.stack(views(members)).view(), tolerance);
    for (std::size_t k = 0; k < members.size(); ++k) {
      const Polar<Cpu> one = polar(cpu, members[k].view(), tolerance[k]);
      EXPECT(all.rank[k] == one.rank.front() && all.method[k] == one.method.front());
      // More steps than a member needs do no harm beyond rounding, enlarged by its condition.
      const double bound = 300 * std::max(m, n) * kEps / (k == 2 ? 1e-5 : 1e-2);
      const ConstView q = all.q.view().member(static_cast<int>(k));
      EXPECT(distance(q, one.q.view()) < bound);
      Matrix gram(std::min(m, n), std::min(m, n));
      multiply(m >= n, q, m < n, q, gram.view());
      EXPECT(distance(gram.view(), eye(gram.rows(), gram.rows()).view()) < 1e-12);
    }
    EXPECT(n < 3 || all.method[3] == PolarMethod::svd);
    EXPECT(n < 35 || (all.method[4] == PolarMethod::qdwh && all.method[5] == PolarMethod::qdwh));
  }
}

void singular_values() {
  Cpu cpu;
  for (const auto& [m, n] : {std::pair{50, 50}, {60, 20}, {20, 60}}) {
    std::vector<Matrix> members;
    for (const double spread : {1.0, 1e-3}) members.push_back(with_spread(m, n, spread, 12));
    const Matrix a = cpu.stack(views(members));
    const Polar<Cpu> p = polar(cpu, a.view());
    const ThinSvd<Cpu> svd = svd_from_polar(cpu, a.view(), p.q.view(), true, 1e300);
    for (int k = 0; k < 2; ++k) {
      Matrix us = copy_of(svd.u.view().member(k)), back(m, n);
      for (int j = 0; j < us.cols(); ++j) {
        for (int i = 0; i < m; ++i) us.at(i, j) *= svd.s.view().member(k).at(j, 0);
      }
      multiply(false, us.view(), true, svd.v.view().member(k), back.view());
      EXPECT(distance(back.view(), members[static_cast<std::size_t>(k)].view()) < 1e-12);
      EXPECT(std::abs(svd.s.view().member(k).at(0, 0) - 1) < 1e-12);
    }
  }
}

void whitened() {
  Cpu cpu;
  std::vector<Matrix> members;
  std::vector<std::string> names;
  for (unsigned k = 0; k < 3; ++k) {
    members.push_back(covariance(45, std::pow(10.0, -2.0 * k), 30 + k));
    names.push_back(format_message("S", k));
  }
  const Regulariser none{0.0, true};
  for (const auto kind : {WhiteningKind::symmetric, WhiteningKind::cholesky}) {
    const Whitening<Cpu> all = whiten(cpu, views(members), none, kind, names);
    for (std::size_t k = 0; k < 3; ++k) {
      const Whitening<Cpu> one = whiten(cpu, {members[k].view()}, none, kind, {names[k]});
      EXPECT(distance(all.w.view().member(static_cast<int>(k)), one.w.view()) == 0);
      EXPECT(all.conditions[k] == one.conditions.front());
    }
  }
  // The first member that fails is named, whatever later ones fail by.
  members[1].at(3, 3) = -1;
  members[2] = covariance(45, 1e-30, 40);
  for (const auto kind : {WhiteningKind::symmetric, WhiteningKind::cholesky}) {
    try {
      whiten(cpu, views(members), none, kind, names);
      EXPECT(false);
    } catch (const NumericalError& e) {
      EXPECT(std::string(e.what()).find("S1 (order 45)") == 0);
    }
  }
}

// The CPU with a device's way of scheduling: equal keys in one stack.
void solvers_on_stacks() {
  Cpu alone;
  Stacking together;
  std::vector<Matrix> storage;
  std::vector<CcaProblem> problems;
  std::vector<GevpProblem> pencils;
  std::vector<UniverseProblem> universes;
  std::vector<std::string> names;
  for (const auto& [p, q] : {std::pair{40, 40}, {40, 40}, {20, 50}, {40, 40}, {20, 50}, {50, 20}}) {
    const auto seed = static_cast<unsigned>(50 + names.size());
    Matrix joint = covariance(p + q, 1e-3, seed);
    for (int i = 0; names.size() == 1 && i < p + q; ++i) joint.at(3, i) = joint.at(i, 3) = 0;
    storage.push_back(copy_of(joint.view().block(0, 0, p, p)));
    storage.push_back(copy_of(joint.view().block(p, p, q, q)));
    storage.push_back(copy_of(joint.view().block(p, 0, q, p)));
    const bool shares = names.size() == 3 || names.size() == 4;  // see below: such data are weakly
    for (int i = 0; shares && i < p * q; ++i) storage.back().data()[i] *= 0.1;  // correlated
    names.push_back(format_message("problems[", names.size(), "]: "));
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto view = [&](std::size_t part) { return std::as_const(storage[3 * i + part]).view(); };
    problems.push_back({view(0), view(1), view(2)});
    pencils.push_back({view(0), view(0), i % 2 == 0 ? 3 : 15});
    universes.push_back({{view(0), view(1)}, {view(2)}, {1, 1}, Regulariser{0.1, false}});
  }
  problems[3].sxx = problems[0].sxx;  // shared by some of a group, and by all of another
  problems[4].sxx = problems[2].sxx;
  const std::vector<Regulariser> values = {{0.05, false}, {0.5, false}};
  const auto a = solve_cca(alone, problems, names, values, {true, true});
  const auto b = solve_cca(together, problems, names, values, {true, true});
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT(distance(a[i].map.view(), b[i].map.view()) < 1e-10);
    EXPECT(distance(a[i].inverse.view(), b[i].inverse.view()) < 1e-9);
    EXPECT(distance(a[i].correlations.view(), b[i].correlations.view()) < 1e-12);
    EXPECT(a[i].x_weights.rows() == b[i].x_weights.rows() && !b[i].y_weights.empty());
    EXPECT(a[i].rank == b[i].rank && a[i].method == b[i].method);
    EXPECT(std::abs(a[i].x_condition / b[i].x_condition - 1) < 1e-9);
    EXPECT(std::abs(a[i].y_condition / b[i].y_condition - 1) < 1e-9);
  }
  EXPECT(b[2].rank == 39);
  const auto c = solve_gevp(alone, pencils, names, {0.1, false});
  const auto d = solve_gevp(together, pencils, names, {0.1, false});
  for (std::size_t i = 0; i < c.size(); ++i) {
    EXPECT(distance(c[i].values.view(), d[i].values.view()) < 1e-12);
    EXPECT(distance(c[i].vectors.view(), d[i].vectors.view()) < 1e-9);
  }
  const auto e = solve_universe(alone, universes, names, {1, 1e-9, 20});
  const auto f = solve_universe(together, universes, names, {1, 1e-9, 20});
  for (std::size_t i = 0; i < e.size(); ++i) {
    EXPECT(distance(e[i].maps[0].view(), f[i].maps[0].view()) < 1e-10);
  }
  std::vector<ConstView> crosses;
  for (const CcaProblem& problem : problems) crosses.push_back(problem.syx);
  const auto g = solve_polar(alone, crosses, names);
  const auto h = solve_polar(together, crosses, names);
  for (std::size_t i = 0; i < g.size(); ++i) {
    EXPECT(distance(g[i].q.view(), h[i].q.view()) < 1e-9 && g[i].rank == h[i].rank);
  }
  storage[9].at(0, 1) += 1;  // of problem 3; problem 0's is asked for instead
  storage[10].at(2, 2) = -4;
  storage[1].at(2, 2) = -4;
  try {
    solve_cca(together, problems, names, values, {});
    EXPECT(false);
  } catch (const NumericalError& error) {
    EXPECT(std::string(error.what()).find("problems[0]: Syy") == 0);
  }
}

}  // namespace

int main() {
  testing::bind_blas();
  primitives();
  norms();
  cholesky();
  inverse_norms_are_bounds();
  polar_factors();
  singular_values();
  whitened();
  solvers_on_stacks();
  return testing::result();
}
