// Totals in files: where they lie, what is in them, and that several threads may ask at once.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/scratch.hpp"
#include "testing.hpp"

namespace {

using namespace ccamerge;

constexpr std::size_t kLarge = 1 << 16;  // bytes

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  ++testing::failures;
}

// How many files of a folder are mapped into this process.
int mapped(const std::string& folder) {
  std::ifstream maps("/proc/self/maps");
  const std::string text((std::istreambuf_iterator<char>(maps)), std::istreambuf_iterator<char>());
  int count = 0;
  for (std::size_t at = text.find(folder); at != std::string::npos; at = text.find(folder, at + 1))
    ++count;
  return count;
}

void test_large_totals(const std::string& folder) {
  Totals before(kLarge, 1.0);
  set_scratch(folder, kLarge);
  {
    Totals small(10), large(kLarge, 2.0);
    expect(mapped(folder) == 1, "a large block lies in a file, a small one in memory");
    expect(std::filesystem::is_empty(folder), "the file has no name");
    Totals copy = large, moved = std::move(large);
    expect(mapped(folder) == 2, "a copy lies in a file of its own");
    copy[7] = 3.0;
    expect(moved[7] == 2.0 && copy[7] == 3.0 && copy[8] == 2.0, "values are kept apart");
    before.swap(copy);
    expect(before[7] == 3.0 && copy[7] == 1.0, "blocks of both kinds are swapped");
    set_scratch("", 0);
    Totals after(kLarge);
    expect(mapped(folder) == 2, "without a folder blocks lie in memory");
  }
  expect(mapped(folder) == 1, "blocks go, and their files with them");
  before = Totals();
  expect(mapped(folder) == 0, "the last of them, too");
}

void test_threads(const std::string& folder) {
  set_scratch(folder, kLarge);
  std::vector<std::thread> threads;
  std::vector<int> right(4, 0);
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t, &right] {
      for (int turn = 0; turn < 50; ++turn) {
        const Totals large(kLarge / sizeof(double) + 1, t), small(3, t);
        right[static_cast<std::size_t>(t)] += large.back() == t && small.back() == t ? 1 : 0;
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const int count : right) expect(count == 50, "each thread has its own blocks");
  set_scratch("", 0);
  expect(mapped(folder) == 0, "nothing is left");
}

void test_no_room(const std::string& folder) {
  set_scratch(folder + "/gone", kLarge);
  try {
    const Totals large(kLarge);
    expect(false, "a folder that is not there has no room");
  } catch (const std::runtime_error& error) {
    expect(std::string(error.what()).find(folder + "/gone") != std::string::npos, error.what());
  }
  set_scratch("", 0);
}

}  // namespace

int main() {
  std::string folder =
      (std::filesystem::temp_directory_path() / "ccamerge-scratch-XXXXXX").string();
  expect(mkdtemp(folder.data()) != nullptr, "a directory");
  test_large_totals(folder);
  test_threads(folder);
  test_no_room(folder);
  std::filesystem::remove_all(folder);
  return testing::result();
}
