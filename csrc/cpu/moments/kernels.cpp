#include "cpu/moments/kernels.hpp"

#include <atomic>
#include <cstring>

namespace ccamerge {

#ifdef CCAMERGE_X86
namespace avx512 {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
#endif
namespace generic {
extern const Kernels table;
}

namespace {

struct Available {
  const Kernels* tables[3];
  const char* names[3];
  std::size_t count = 0;

  Available() {
#ifdef CCAMERGE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      add(avx512::table);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")) {
      add(avx2::table);
    }
#endif
    add(generic::table);
  }

  void add(const Kernels& table) {
    tables[count] = &table;
    names[count++] = table.name;
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

std::atomic<const Kernels*> selected{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = selected;
  return table ? *table : *available().tables[0];
}

const char* const* kernel_names(std::size_t* count) {
  *count = available().count;
  return available().names;
}

bool select_kernels(const char* name) {
  for (std::size_t i = 0; i < available().count; ++i) {
    if (std::strcmp(name, available().names[i]) == 0) {
      selected = available().tables[i];
      return true;
    }
  }
  return false;
}

}  // namespace ccamerge
