// The solvers on a device against the same on the CPU.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/solve/instances.hpp"
#include "cuda/solve/instances.hpp"
#include "cuda_testing.hpp"

using namespace ccamerge;
using namespace ccamerge::testing;

namespace {

using Values = std::vector<double>;

// A view of values on the host, and of a copy on the device.
struct Both {
  Values values;
  int rows, cols;
  cuda::Buffer memory;

  Both(Values given, int rows_in, int cols_in)
      : values(std::move(given)), rows(rows_in), cols(cols_in), memory(on_device(values)) {}
  ConstView host() const { return {values.data(), rows, cols, rows}; }
  ConstView device() const { return {memory.as<double>(), rows, cols, rows}; }
};

// x^T y / n of the columns of (n, p) and (n, q).
Values gram(const Values& x, int p, const Values& y, int q, int n) {
  Values out(static_cast<std::size_t>(p * q));
  blas::gemm<double>(true, false, p, q, n, 1.0 / n, x.data(), n, y.data(), n, 0.0, out.data(), p);
  return out;
}

struct Problem {
  Both sxx, syy, syx;
};

// Features that share half of their variance; some units are dead.
Problem problem(int p, int q, bool dead) {
  const int n = 3 * std::max(p, q);
  std::normal_distribution<double> normal;
  Values x(static_cast<std::size_t>(n * p)), y(static_cast<std::size_t>(n * q));
  for (double& e : x) e = normal(random_numbers);
  for (std::size_t e = 0; e < y.size(); ++e) {
    y[e] = normal(random_numbers) + (e < x.size() ? x[e] : 0.0);
  }
  if (dead) {
    std::fill_n(x.begin(), 2 * n, 0.0);
    std::fill_n(y.begin(), 2 * n, 0.0);
  }
  // Not quite symmetric, as sums in other orders are: the symmetric part counts.
  Values sxx = gram(x, p, x, p, n), syy = gram(y, q, y, q, n);
  for (Values* s : {&sxx, &syy}) {
    for (double& e : *s) e *= 1 + 1e-7 * normal(random_numbers);
  }
  return {{std::move(sxx), p, p}, {std::move(syy), q, q}, {gram(y, q, x, p, n), q, p}};
}

double difference(cuda::Gpu& gpu, const cuda::Stack& found, const Matrix& expected) {
  Values values(expected.size());
  EXPECT(found.rows() == expected.rows() && found.cols() == expected.cols());
  gpu.download(found.view(), values.data());
  double apart = 0, largest = 0;
  for (std::size_t e = 0; e < values.size(); ++e) {
    apart = std::max(apart, std::abs(values[e] - expected.data()[e]));
    largest = std::max(largest, std::abs(expected.data()[e]));
  }
  return largest > 0 ? apart / largest : apart;
}

void check_cca() {
  std::vector<Problem> problems;
  const int odd = pick(65, 100);
  for (const auto& [p, q, dead] :
       {std::tuple{odd, odd, false}, std::tuple{odd, odd, true}, std::tuple{odd, odd, false},
        std::tuple{64, 64, false}, std::tuple{pick(3, 9), pick(10, 20), false},
        std::tuple{129, 40, true}}) {
    problems.push_back(problem(p, q, dead));
  }
  std::vector<CcaProblem> host, device;
  std::vector<std::string> names;
  for (const Problem& p : problems) {
    host.push_back({p.sxx.host(), p.syy.host(), p.syx.host()});
    device.push_back({p.sxx.device(), p.syy.device(), p.syx.device()});
    names.push_back("problems[" + std::to_string(names.size()) + "]: ");
  }
  const std::vector<Regulariser> regularisers{{0.3, false}, {0.01, true}};
  Cpu cpu;
  cuda::Gpu gpu(allocate, nullptr);
  const auto expected = solve_cca(cpu, host, names, regularisers, {true, true});
  const auto found = solve_cca(gpu, device, names, regularisers, {true, true});
  EXPECT(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT(found[i].rank == expected[i].rank);
    EXPECT(found[i].method == expected[i].method);
    EXPECT(difference(gpu, found[i].map, expected[i].map) < 1e-9);
    EXPECT(difference(gpu, found[i].inverse, expected[i].inverse) < 1e-9);
    EXPECT(difference(gpu, found[i].correlations, expected[i].correlations) < 1e-9);
    EXPECT(std::abs(found[i].x_condition / expected[i].x_condition - 1) < 1e-6);
  }
}

void check_polar_of_singular() {
  Values values(static_cast<std::size_t>(80 * 80), 0.0);  // rank 79 by a repeated column
  std::normal_distribution<double> normal;
  for (double& x : values) x = normal(random_numbers);
  std::copy_n(values.begin(), 80, values.begin() + 80);
  const Both a(std::move(values), 80, 80);
  Cpu cpu;
  cuda::Gpu gpu(allocate, nullptr);
  const auto expected = solve_polar(cpu, {a.host()}, {"a"});
  const auto found = solve_polar(gpu, {a.device()}, {"a"});
  EXPECT(found[0].method == PolarMethod::svd && found[0].rank == 79);
  EXPECT(difference(gpu, found[0].q, expected[0].q) < 1e-9);
}

void check_gevp_and_whitening() {
  const Problem p = problem(70, 70, false);
  Cpu cpu;
  cuda::Gpu gpu(allocate, nullptr);
  for (const int k : {5, 70}) {
    const Regulariser ridge{0.1, false};
    const auto expected = solve_gevp(cpu, {{p.sxx.host(), p.syy.host(), k}}, {""}, ridge);
    const auto found = solve_gevp(gpu, {{p.sxx.device(), p.syy.device(), k}}, {""}, ridge);
    EXPECT(difference(gpu, found[0].values, expected[0].values) < 1e-11);
    EXPECT(difference(gpu, found[0].vectors, expected[0].vectors) < 1e-8);
  }
  for (const WhiteningKind kind : {WhiteningKind::symmetric, WhiteningKind::cholesky}) {
    const auto expected = whiten(cpu, {p.sxx.host()}, {0.1, false}, kind, {"s"});
    const auto found = whiten(gpu, {p.sxx.device()}, {0.1, false}, kind, {"s"});
    EXPECT(difference(gpu, found.w, expected.w) < 1e-10);
  }
}

void check_failures() {
  const Both zero(Values(9, 0.0), 3, 3), bad(Values(9, std::nan("")), 3, 3);
  cuda::Gpu gpu(allocate, nullptr);
  std::string message;
  try {
    solve_cca(gpu, {{zero.device(), zero.device(), zero.device()}}, {"problems[0]: "},
              {{0.0, false}}, {});
  } catch (const NumericalError& error) {
    message = error.what();
  }
  EXPECT(message.rfind("problems[0]: Sxx", 0) == 0);
  message.clear();
  try {
    solve_polar(gpu, {zero.device(), bad.device()}, {"first", "second"});
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  EXPECT(message.rfind("second", 0) == 0);
}

#ifdef CCAMERGE_EMULATED
// Streams come and go, as in a program that makes one for each task; here they are only numbers.
void check_streams() {
  std::size_t most = 0;
  for (std::uintptr_t stream = 1; stream <= 200; ++stream) {
    const cuda::Handles handles(reinterpret_cast<cudaStream_t>(stream << 4));
    EXPECT(handles.stream() == reinterpret_cast<cudaStream_t>(stream << 4));
    most = std::max(most, cuda::Handles::idle_sets());
  }
  EXPECT(most >= 8 && most <= 16);
  {
    const cuda::Handles first(nullptr), second(nullptr);  // at the same time, on one stream
    EXPECT(cuda::Handles::idle_sets() <= 16);
  }
  EXPECT(cuda::Handles::idle_sets() <= 18);
}
#endif

}  // namespace

int main(int argc, char** argv) {
  start(argc, argv);
  check_cca();
  check_polar_of_singular();
  check_gevp_and_whitening();
  check_failures();
#ifdef CCAMERGE_EMULATED
  check_streams();
#endif
  return result();
}
