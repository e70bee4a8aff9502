#include "cuda/solve/backend.hpp"

#include <algorithm>
#include <numeric>

#include "common/parallel.hpp"
#include "cuda/solve/elementwise.hpp"
#include "cuda/solve/reductions.hpp"

namespace ccamerge::cuda {

std::shared_ptr<Buffer> Pool::take(std::size_t bytes) {
  bytes = std::max<std::size_t>(bytes, 1);
  Buffer buffer;
  if (const auto it = idle_.find(bytes); it != idle_.end()) {
    buffer = std::move(it->second);
    idle_.erase(it);
  } else {
    try {
      buffer = allocate_(bytes);
    } catch (...) {
      if (idle_.empty()) throw;
      clear();  // what is idle here may be what is missing
      buffer = allocate_(bytes);
    }
  }
  return {new Buffer(std::move(buffer)), [bytes, pool = weak_from_this()](Buffer* done) {
            if (const auto alive = pool.lock()) alive->idle_.emplace(bytes, std::move(*done));
            delete done;
          }};
}

Gpu::Gpu(const Allocate& allocate, cudaStream_t stream, std::size_t most_bytes)
    : pool_(std::make_shared<Pool>(allocate)), handles_(stream), most_bytes_(most_bytes) {}

template <class T>
std::shared_ptr<Buffer> Gpu::uploaded(const std::vector<T>& values) {
  const std::size_t bytes = values.size() * sizeof(T);
  auto memory = pool_->take(bytes);
  to_device(memory->data, values.data(), bytes, stream());
  return memory;
}

template <class T>
std::vector<T> Gpu::downloaded(const Buffer& from, std::size_t count) {
  std::vector<T> values(count);
  to_host(values.data(), from.data, count * sizeof(T), stream());
  return values;
}

Stack Gpu::matrix(int rows, int cols, int count) {
  const std::size_t elements = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols) *
                               static_cast<std::size_t>(count);
  return {pool_->take(elements * sizeof(double)), 0, rows, cols, count};
}

Stack Gpu::stack(const std::vector<ConstView>& matrices) {
  const ConstView first = matrices.at(0);
  Stack out = matrix(first.rows, first.cols, static_cast<int>(matrices.size()));
  std::vector<const double*> from;
  for (const ConstView m : matrices) {
    if (m.ld != first.ld) break;
    from.push_back(m.data);
  }
  if (from.size() == matrices.size()) {
    cuda::stack(from, first.ld, out.view(), this->stream());
    return out;
  }
  for (std::size_t k = 0; k < matrices.size(); ++k) {
    combine(out.view().member(static_cast<int>(k)), 1.0, matrices[k]);
  }
  return out;
}

std::vector<Stack> Gpu::split(Stack stack) {
  const std::size_t member =
      static_cast<std::size_t>(stack.rows()) * static_cast<std::size_t>(stack.cols());
  std::vector<Stack> out;
  for (int k = 0; k < stack.count(); ++k) {
    out.emplace_back(stack.memory_,
                     stack.offset_ + static_cast<std::size_t>(k) * member * sizeof(double),
                     stack.rows(), stack.cols(), 1);
  }
  return out;
}

namespace {

std::size_t elements_of(ConstView a) {
  return static_cast<std::size_t>(a.rows) * static_cast<std::size_t>(a.cols) *
         static_cast<std::size_t>(a.count);
}

bool contiguous(ConstView a) {
  return (a.ld == a.rows || a.cols <= 1) &&
         (a.count <= 1 || a.stride == static_cast<std::ptrdiff_t>(a.rows) * a.cols);
}

}  // namespace

void Gpu::upload(const double* host, View to) {
  const std::size_t bytes = elements_of(to) * sizeof(double);
  if (contiguous(to)) return to_device(to.data, host, bytes, stream());
  Stack copy = matrix(to.rows, to.cols, to.count);
  to_device(copy.view().data, host, bytes, stream());
  combine(to, 1.0, copy.view());
}

void Gpu::download(ConstView from, double* host) {
  const std::size_t bytes = elements_of(from) * sizeof(double);
  if (contiguous(from)) return to_host(host, from.data, bytes, stream());
  Stack copy = matrix(from.rows, from.cols, from.count);
  combine(copy.view(), 1.0, from);
  to_host(host, copy.view().data, bytes, stream());
}

void Gpu::multiply(bool trans_a, ConstView a, bool trans_b, ConstView b, View c, double alpha,
                   double beta) {
  if (c.rows == 0 || c.cols == 0 || c.count == 0) return;
  const int inner = trans_a ? a.rows : a.cols;
  if (inner == 0) return combine(c, beta, c);
  handles_.multiply(Number::float64, c.rows, c.cols, inner, alpha,
                    {a.data, a.ld, a.stride, trans_a}, {b.data, b.ld, b.stride, trans_b}, beta,
                    c.data, c.ld, c.stride, c.count);
}

namespace {

// Up to this order a product of full matrices is faster than what cuBLAS has for symmetric ones,
// and comes in batches; beyond it, what is above the diagonal is left out by halves.
constexpr int kFullOrder = 1024;

}  // namespace

void Gpu::gram_lower(double alpha, ConstView a, View c) {
  if (c.cols <= kFullOrder) return multiply(true, a, false, a, c, alpha);
  const int h = c.cols / 2, rest = c.cols - h;
  const ConstView left = a.block(0, 0, a.rows, h), right = a.block(0, h, a.rows, rest);
  gram_lower(alpha, left, c.block(0, 0, h, h));
  multiply(true, right, false, left, c.block(h, 0, rest, h), alpha);
  gram_lower(alpha, right, c.block(h, h, rest, rest));
}

void Gpu::downdate_lower(ConstView a, View c) {
  if (c.cols <= kFullOrder) return multiply(false, a, true, a, c, -1.0, 1.0);
  const int h = c.cols / 2, rest = c.cols - h;
  const ConstView top = a.block(0, 0, h, a.cols), bottom = a.block(h, 0, rest, a.cols);
  downdate_lower(top, c.block(0, 0, h, h));
  multiply(false, bottom, true, top, c.block(h, 0, rest, h), -1.0, 1.0);
  downdate_lower(bottom, c.block(h, h, rest, rest));
}

std::shared_ptr<Buffer> Gpu::zeros(std::size_t bytes) {
  auto memory = pool_->take(bytes);
  check(cudaMemsetAsync(memory->data, 0, bytes, stream()), "cudaMemsetAsync");
  return memory;
}

Gpu::Info Gpu::info(int count) {
  return {zeros(static_cast<std::size_t>(count) * sizeof(int)), count};
}

void Gpu::factor_block(View a, View inverse, int at, Info& info) {
  cuda::factor_block(a, inverse, at, info.memory->as<int>(), stream());
}

std::vector<int> Gpu::read(const Info& info) {
  return downloaded<int>(*info.memory, static_cast<std::size_t>(info.count));
}

void Gpu::combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& beta,
                  ConstView b, const Coefficients& diagonal, Part part) {
  cuda::combine(c, alpha, a, beta, b, diagonal, part, stream());
}

void Gpu::combine(View c, const Coefficients& alpha, ConstView a, const Coefficients& diagonal,
                  Part part) {
  cuda::combine(c, alpha, a, 0.0, {}, diagonal, part, stream());
}

void Gpu::combine(View c, const Coefficients& diagonal, Part part) {
  cuda::combine(c, 0.0, {}, 0.0, {}, diagonal, part, stream());
}

void Gpu::transpose(ConstView from, View to) { cuda::transpose(from, to, stream()); }

void Gpu::mirror_lower(View a) { cuda::mirror_lower(a, stream()); }

void Gpu::reverse_columns(ConstView from, View to) { cuda::reverse_columns(from, to, stream()); }

void Gpu::scale_columns(View a, const std::vector<double>& factors) {
  const auto memory = uploaded(factors);
  cuda::scale_columns(a, memory->as<double>(), stream());
}

void Gpu::fix_signs(View a) { cuda::fix_signs(a, stream()); }

void Gpu::gather(ConstView from, const std::vector<int>& rows, const std::vector<int>& cols,
                 View to) {
  const auto r = uploaded(rows), c = uploaded(cols);
  cuda::gather(from, r->as<int>(), c->as<int>(), to, stream());
}

void Gpu::scatter(ConstView from, const std::vector<int>& rows, const std::vector<int>& cols,
                  View to) {
  const auto r = uploaded(rows), c = uploaded(cols);
  cuda::scatter(from, r->as<int>(), c->as<int>(), to, stream());
}

std::vector<ColumnSums> Gpu::column_sums(ConstView a, Part part) {
  const std::size_t columns = static_cast<std::size_t>(a.cols) * static_cast<std::size_t>(a.count);
  const auto memory = pool_->take(columns * sizeof(ColumnSums));
  cuda::column_sums(a, part, memory->as<ColumnSums>(), stream());
  return downloaded<ColumnSums>(*memory, columns);
}

std::vector<double> Gpu::inner(ConstView a, ConstView b) {
  const auto cols = static_cast<std::size_t>(a.cols), count = static_cast<std::size_t>(a.count);
  const auto memory = pool_->take(cols * count * sizeof(double));
  column_dots(a, b, memory->as<double>(), stream());
  const auto dots = downloaded<double>(*memory, cols * count);
  std::vector<double> sums;
  for (std::size_t k = 0; k < count; ++k) {
    const auto first = dots.begin() + static_cast<std::ptrdiff_t>(k * cols);
    sums.push_back(std::accumulate(first, first + static_cast<std::ptrdiff_t>(cols), 0.0));
  }
  return sums;
}

std::vector<Symmetry> Gpu::symmetrise(View a) {
  const auto count = static_cast<std::size_t>(a.count);
  const auto memory = zeros(count * sizeof(Symmetry));
  static_assert(sizeof(Symmetry) == sizeof(SymmetryBits));
  cuda::symmetrise(a, memory->as<SymmetryBits>(), stream());
  return downloaded<Symmetry>(*memory, count);
}

std::vector<int> Gpu::eigh(bool vectors, View a, View w) {
  if (!contiguous(a) || !contiguous(w)) {
    Stack copy = matrix(a.rows, a.cols, a.count), values = matrix(w.rows, 1, w.count);
    combine(copy.view(), 1.0, a);
    auto infos = eigh(vectors, copy.view(), values.view());
    combine(a, 1.0, copy.view());
    combine(w, 1.0, values.view());
    return infos;
  }
  Info infos = info(a.count);
  std::vector<std::shared_ptr<Buffer>> workspaces;
  handles_.eigh(vectors, a.rows, a.data, a.ld, a.stride, w.data, a.count, infos.memory->as<int>(),
                [&](std::size_t bytes) -> void* {
                  workspaces.push_back(pool_->take(bytes));
                  return workspaces.back()->data;
                });
  return read(infos);
}

std::vector<int> Gpu::eigh_top(View a, int k, View w, View z) {
  const int n = a.rows;
  Stack values = matrix(n, 1, a.count);
  auto infos = eigh(true, a, values.view());
  combine(z, 1.0, ConstView(a).block(0, n - k, n, k));
  combine(w, 1.0, ConstView(values.view()).block(n - k, 0, k, 1));
  return infos;
}

void Gpu::groups(const std::vector<WorkItem>& items, const GroupTask& task) {
  std::map<std::array<int, 3>, std::vector<std::size_t>> by_key;
  for (std::size_t i = 0; i < items.size(); ++i) by_key[items[i].key].push_back(i);
  constexpr std::size_t most_members = 65535;  // of a launch's second extent
  for (const auto& [key, members] : by_key) {
    std::vector<std::size_t> group;
    std::size_t bytes = 0;
    for (const std::size_t i : members) {
      const std::size_t own = items[i].elements * sizeof(double);
      if (!group.empty() && (bytes + own > most_bytes_ || group.size() == most_members)) {
        task(group);
        group.clear();
        bytes = 0;
      }
      group.push_back(i);
      bytes += own;
    }
    task(group);
    pool_->clear();  // the next shapes need other sizes
  }
}

void Gpu::each(std::size_t count, const Task& task) {
  for (std::size_t i = 0; i < count; ++i) task(i);
}

void Gpu::poll() { poll_interrupt(); }

static_assert(Backend<Gpu>);

}  // namespace ccamerge::cuda
