#include "cpu/solve/backend.hpp"

#include <algorithm>
#include <numeric>

#include "common/parallel.hpp"
#include "host/blas.hpp"

namespace ccamerge {

static_assert(Backend<Cpu>);

Matrix Cpu::stack(const std::vector<ConstView>& members) {
  const ConstView first = members.front();
  Matrix out(first.rows, first.cols, static_cast<int>(members.size()));
  for (std::size_t k = 0; k < members.size(); ++k) {
    copy(members[k], out.view().member(static_cast<int>(k)));
  }
  return out;
}

std::vector<Matrix> Cpu::split(Matrix stack) {
  std::vector<Matrix> out;
  if (stack.count() == 1) {
    out.push_back(std::move(stack));
    return out;
  }
  for (int k = 0; k < stack.count(); ++k) out.push_back(copy_of(stack.view().member(k)));
  return out;
}

void Cpu::upload(const double* host, View to) {
  for (int k = 0; k < to.count; ++k) {
    copy({host, to.rows, to.cols, to.rows}, to.member(k));
    host += static_cast<std::ptrdiff_t>(to.rows) * to.cols;
  }
}

void Cpu::download(ConstView from, double* host) {
  for (int k = 0; k < from.count; ++k) {
    copy(from.member(k), {host, from.rows, from.cols, from.rows});
    host += static_cast<std::ptrdiff_t>(from.rows) * from.cols;
  }
}

void Cpu::multiply(bool trans_a, ConstView a, bool trans_b, ConstView b, View c, double alpha,
                   double beta) {
  for (int k = 0; k < c.count; ++k) {
    ccamerge::multiply(trans_a, a.member(k), trans_b, b.member(k), c.member(k), alpha, beta);
  }
}

void Cpu::gram_lower(double alpha, ConstView a, View c) {
  for (int k = 0; k < c.count; ++k) {
    blas::syrk(true, a.cols, a.rows, alpha, a.member(k).data, a.ld, 0.0, c.member(k).data, c.ld);
  }
}

void Cpu::downdate_lower(ConstView a, View c) {
  for (int k = 0; k < c.count; ++k) {
    blas::syrk(false, a.rows, a.cols, -1.0, a.member(k).data, a.ld, 1.0, c.member(k).data, c.ld);
  }
}

bool Cpu::failed_all(const Info& info) {
  return std::all_of(info.begin(), info.end(), [](int i) { return i != 0; });
}

std::vector<int> Cpu::eigh(bool vectors, View a, View w) {
  std::vector<int> out;
  for (int k = 0; k < a.count; ++k) {
    out.push_back(blas::syevd(vectors, a.rows, a.member(k).data, a.ld, w.member(k).data));
  }
  return out;
}

std::vector<int> Cpu::eigh_top(View a, int k, View w, View z) {
  const int n = a.rows;
  std::vector<double> values(static_cast<std::size_t>(n));  // LAPACK wants room for all
  std::vector<int> out;
  for (int m = 0; m < a.count; ++m) {
    out.push_back(blas::syevr(n, a.member(m).data, a.ld, n - k + 1, n, values.data(),
                              z.member(m).data, z.ld));
    std::copy_n(values.data(), k, w.member(m).data);
  }
  return out;
}

void Cpu::groups(const std::vector<WorkItem>& items, const GroupTask& task) {
  std::vector<std::size_t> order(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  // Longest first, so that no thread is left with a long task at the end.
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t i, std::size_t j) { return items[i].cost > items[j].cost; });
  parallel_for(order.size(), [&](std::size_t turn) { task({order[turn]}); });
}

void Cpu::each(std::size_t count, const Task& task) { parallel_for(count, task); }

int Cpu::threads() { return num_threads(); }

void Cpu::poll() { poll_interrupt(); }

}  // namespace ccamerge
