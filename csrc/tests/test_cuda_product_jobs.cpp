// The products that an update needs: each element of each block is a job's once.
#include "cuda/moments/product_jobs.hpp"
#include "cuda_testing.hpp"

using namespace ccamerge;
using namespace ccamerge::testing;

namespace {

void check(const std::vector<std::int64_t>& dims, std::int64_t most) {
  const int models = static_cast<int>(dims.size());
  const BlockTable table(dims, static_cast<Pairs>(pick(0, 2)), pick(0, models - 1));
  const cuda::FeatureAxis axis(table);
  std::vector<std::vector<int>> seen;
  for (const auto& [row, column] : table.blocks()) {
    seen.emplace_back(static_cast<std::size_t>(table.dim(row) * table.dim(column)));
  }
  for (const cuda::ProductJob& job : cuda::product_jobs(table, axis, most)) {
    EXPECT(job.size() <= most || job.columns <= cuda::kLeastColumns);
    EXPECT(job.columns % 8 == 0);
    EXPECT(job.column + (job.models - 1) * job.step + job.columns <= axis.width);
    for (const cuda::ProductPart& part : cuda::parts_of(job, table, axis)) {
      const auto [row, column] = table.blocks()[part.block];
      EXPECT(part.row + part.height <= table.dim(row));
      EXPECT(part.column + part.width <= table.dim(column));
      const std::int64_t within = part.offset % (job.rows * job.columns) % job.columns;
      const std::int64_t model = part.offset / (job.rows * job.columns);
      const auto start = [&](int m) { return axis.start[static_cast<std::size_t>(m)]; };
      EXPECT(job.row + model * job.step == start(row) + part.row);
      EXPECT(job.column + model * job.step + within == start(column) + part.column);
      for (std::int64_t r = part.row; r < part.row + part.height; ++r) {
        for (std::int64_t c = part.column; c < part.column + part.width; ++c) {
          ++seen[part.block][static_cast<std::size_t>(r * table.dim(column) + c)];
        }
      }
    }
  }
  for (std::size_t b = 0; b < seen.size(); ++b) {
    const auto [row, column] = table.blocks()[b];
    const std::int64_t width = table.dim(column);
    for (std::size_t e = 0; e < seen[b].size(); ++e) {
      const auto at = static_cast<std::int64_t>(e);
      const bool below = row == column && at % width < at / width;
      EXPECT(below ? seen[b][e] <= 1 : seen[b][e] == 1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  start(argc, argv);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::int64_t> dims(static_cast<std::size_t>(pick(1, 10)));
    for (auto& d : dims) d = pick(1, 300);
    check(dims, pick(1, 1 << 20));
    check(std::vector<std::int64_t>(dims.size(), pick(1, 600)), pick(1, 1 << 20));
  }
  check({1300, 2600}, 1 << 20);
  check({2100}, 1 << 21);
  return result();
}
