// The universe solver without Python: what a sanitizer should see of it.
#include <cmath>
#include <cstddef>
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

// Second moments of models of the given widths that share a signal.
struct Moments {
  std::vector<Matrix> own, crosses;

  Moments(const std::vector<int>& widths, unsigned seed, bool dead = false) {
    constexpr int kSamples = 300, kSignals = 12;
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal;
    const auto random = [&](int m, int n) {
      Matrix out(m, n);
      for (std::size_t i = 0; i < out.size(); ++i) out.data()[i] = normal(generator);
      return out;
    };
    const Matrix shared = random(kSamples, kSignals);
    std::vector<Matrix> features;
    for (const int d : widths) {
      Matrix x = random(kSamples, d);
      const Matrix mixing = random(kSignals, d);
      multiply(false, shared.view(), false, mixing.view(), x.view(), 1.0, 0.5);
      for (int i = 0; dead && i < kSamples; ++i) x.at(i, 1) = 0;
      features.push_back(std::move(x));
    }
    for (std::size_t i = 0; i < widths.size(); ++i) {
      for (std::size_t j = i; j < widths.size(); ++j) {
        Matrix s(widths[j], widths[i]);
        multiply(true, features[j].view(), false, features[i].view(), s.view(), 1.0 / kSamples);
        (i == j ? own : crosses).push_back(std::move(s));
      }
    }
  }

  UniverseProblem problem(std::optional<Regulariser> regulariser) const {
    UniverseProblem out{{}, {}, std::vector<double>(own.size(), 1.0), regulariser};
    for (const Matrix& s : own) out.own.push_back(s.view());
    for (const Matrix& s : crosses) out.crosses.push_back(s.view());
    return out;
  }
};

double distance(const Matrix& a, const Matrix& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(a.data()[i] - b.data()[i], 2);
  return std::sqrt(sum);
}

void test_threads_and_cycles() {
  const Moments square({20, 20, 20, 20}, 1), uneven({9, 140, 12}, 2), dead({15, 15, 15}, 3, true),
      pair({30, 30}, 4);
  std::vector<UniverseProblem> problems;
  for (const Moments* m : {&square, &uneven, &dead, &pair}) {
    problems.push_back(m->problem(Regulariser{0.01, false}));
  }
  problems.push_back(square.problem(std::nullopt));
  problems[0].weights = {1, 0, 2, 1};
  const std::vector<std::string> names(problems.size(), "");
  Cpu cpu;
  std::vector<UniverseSolution<Cpu>> first;
  for (const int threads : {1, 3, 8}) {  // with 8 the threads share each problem
    set_num_threads(threads);
    auto found = solve_universe(cpu, problems, names, {1, 1e-9, 50});
    for (std::size_t p = 0; p < found.size(); ++p) {
      const UniverseSolution<Cpu>& s = found[p];
      for (std::size_t f = 1; f < s.objectives.size(); ++f) {
        EXPECT(s.objectives[f] >= s.objectives[f - 1] - 1e-12 * s.objectives[f]);
      }
      const bool equal = problems[p].own.front().rows == problems[p].own.back().rows;
      for (std::size_t i = 0; equal && i < s.maps.size(); ++i) {
        Matrix product(s.maps[i].rows(), s.inverses[i].cols());
        multiply(false, s.maps[i].view(), false, s.inverses[i].view(), product.view());
        EXPECT(distance(product, eye(product.rows(), product.rows())) < 1e-10);
      }
      for (std::size_t i = 0; threads > 1 && i < s.maps.size(); ++i) {
        EXPECT(distance(s.maps[i], first[p].maps[i]) == 0);
      }
    }
    EXPECT(found[2].rank == 14 && !found[2].spectral);  // one dead unit of 15
    if (threads == 1) first = std::move(found);
  }
}

void test_failures() {
  Cpu cpu;
  Moments moments({8, 8, 8}, 5);
  const auto message = [&]() -> std::string {
    try {
      solve_universe(cpu, {moments.problem(Regulariser{0.0, true})}, {"problems[0]: "}, {});
    } catch (const std::exception& e) {
      return e.what();
    }
    return "";
  };
  EXPECT(message().empty());
  const double square = std::exchange(moments.own[1].at(2, 2), -1);
  EXPECT(message().find("problems[0]: models[1]") == 0);
  moments.own[1].at(2, 2) = square;
  moments.crosses[2].at(0, 0) = NAN;
  EXPECT(message().find("problems[0]: models[1]") == 0);
}

}  // namespace

int main() {
  testing::bind_blas();
  test_threads_and_cycles();
  test_failures();
  return testing::result();
}
