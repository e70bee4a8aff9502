// Large totals in files that are mapped into memory, where they would not fit there together. The
// system writes pages that are not in use to the file, and reads them again when they are.
#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <vector>

namespace ccamerge {

// From now on, storage of `Totals` of at least `bytes` lies in files of this folder, which have no
// name and vanish with it; an empty folder means memory again. What there is stays where it is.
void set_scratch(const std::string& folder, std::size_t bytes);

// For `Totals`. Throws std::bad_alloc, or std::runtime_error naming the folder that has no room.
void* allocate_totals(std::size_t bytes);
void release_totals(void* memory) noexcept;

template <class T>
struct TotalsAllocator {
  using value_type = T;
  TotalsAllocator() = default;
  template <class U>
  TotalsAllocator(const TotalsAllocator<U>&) {}  // NOLINT: as allocators convert
  T* allocate(std::size_t count) { return static_cast<T*>(allocate_totals(count * sizeof(T))); }
  void deallocate(T* memory, std::size_t) noexcept { release_totals(memory); }
  template <class U>
  bool operator==(const TotalsAllocator<U>&) const {
    return true;
  }
};

using Totals = std::vector<double, TotalsAllocator<double>>;

}  // namespace ccamerge
