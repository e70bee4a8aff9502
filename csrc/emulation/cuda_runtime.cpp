#include "cuda_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CCAMERGE_RACES)
#include <sanitizer/tsan_interface.h>
#endif

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

// Saves what a call must preserve on the stack, leaves the stack pointer at *from, and goes on with
// the stack `to`. Some ten times faster than swapcontext, which calls the system.
#if !defined(__x86_64__)
#error "the emulation switches stacks on x86-64 only"
#endif
extern "C" void ccamerge_emulation_switch(void** from, void* to);
asm(R"(
.text
.type ccamerge_emulation_switch, @function
ccamerge_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ccamerge_emulation_switch, . - ccamerge_emulation_switch
)");

namespace ccamerge::emulation {
namespace {

constexpr std::size_t kStack = std::size_t{256} << 10;
constexpr std::size_t kMostShared = std::size_t{227} << 10;  // of an H100's block
constexpr unsigned kWarp = 32;

enum class Waits { no, warp, block, done };

// What ThreadSanitizer is told, so that it takes fibers for threads that nothing but barriers
// orders (and the blocks of a grid, which run one after the other). This file is compiled without
// its instrumentation: what switches fibers is no part of a kernel.
#if defined(CCAMERGE_RACES)
using Thread = void*;
void go_to(Thread& thread) {
  if (!thread) thread = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync);
}
void forget(Thread thread) {
  if (thread) __tsan_destroy_fiber(thread);
}
Thread this_thread() { return __tsan_get_current_fiber(); }
void before_barrier(char& barrier) { __tsan_release(&barrier); }
void after_barrier(char& barrier) { __tsan_acquire(&barrier); }
#else
struct Thread {};
void go_to(Thread) {}
void forget(Thread) {}
Thread this_thread() { return {}; }
void before_barrier(char&) {}
void after_barrier(char&) {}
#endif

// A place where threads wait for each other. None can be more than one round ahead of another, so
// two marks tell the rounds apart.
struct Barrier {
  char marks[2];
};

struct Fiber {
  void* stack = nullptr;  // its pointer, while another runs
  uint3 index;
  Waits waits = Waits::no;
  unsigned rounds[2] = {};  // of its warp's barrier, of the block's
  void* fake_stack = nullptr;
  Thread thread = {};
};

struct Warp {
  alignas(16) unsigned char given[kWarp][16];
  Barrier barrier;
};

// Memory that is kept between launches; the guard page below each stack turns an overflow into a
// crash.
class Stacks {
 public:
  ~Stacks() { release(); }
  unsigned char* of(std::size_t fiber, std::size_t count) {
    if (count > count_) {
      release();
      void* const memory = mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      memory_ = static_cast<unsigned char*>(memory);
      count_ = count;
      for (std::size_t i = 0; i < count; ++i) mprotect(memory_ + i * kStack, 4096, PROT_NONE);
    }
    return memory_ + fiber * kStack;
  }

 private:
  void release() {
    if (memory_) munmap(memory_, count_ * kStack);
    memory_ = nullptr;
  }
  unsigned char* memory_ = nullptr;
  std::size_t count_ = 0;
};

// One block at a time on each thread of the system.
struct Block {
  ~Block() {
    for (const Fiber& fiber : fibers) forget(fiber.thread);
  }
  std::vector<Fiber> fibers;  // at least as many as threads
  std::size_t count = 0;      // of threads
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared;
  Stacks stacks;
  void* scheduler = nullptr;
  std::size_t current = 0;
  Thread scheduler_thread = {};
  Barrier barrier;
  char start, end;  // of a block
  const std::function<void()>* kernel = nullptr;
  std::minstd_rand order;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_size = 0;
};

thread_local Block* block = nullptr;

// AddressSanitizer has to be told when the stack changes.
void before_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                   [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, stack, size);
#endif
}

void after_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** from,
                  [[maybe_unused]] std::size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, from, size);
#endif
}

Fiber& here() { return block->fibers[block->current]; }

// Back to the scheduler.
void leave() {
  Fiber& self = here();
  before_switch(self.waits == Waits::done ? nullptr : &self.fake_stack, block->scheduler_stack,
                block->scheduler_stack_size);
  go_to(block->scheduler_thread);
  ccamerge_emulation_switch(&self.stack, block->scheduler);
  after_switch(self.fake_stack, nullptr, nullptr);
}

void wait(Waits what, Barrier& barrier) {
  Fiber& self = here();
  char& mark = barrier.marks[self.rounds[what == Waits::block]++ % 2];
  before_barrier(mark);
  self.waits = what;
  leave();
  after_barrier(mark);
}

void enter() {
  after_switch(nullptr, &block->scheduler_stack, &block->scheduler_stack_size);
  after_barrier(block->start);
  (*block->kernel)();
  before_barrier(block->end);
  here().waits = Waits::done;
  leave();
}

void resume(std::size_t fiber) {
  block->current = fiber;
  threadIdx = here().index;
  before_switch(&block->scheduler_fake_stack, block->stacks.of(fiber, 0), kStack);
  go_to(here().thread);
  ccamerge_emulation_switch(&block->scheduler, here().stack);
  after_switch(block->scheduler_fake_stack, nullptr, nullptr);
}

// Lets go the fibers [first, last) if none of them can go on otherwise; false if one still runs.
bool release(std::size_t first, std::size_t last, Waits what) {
  bool any = false;
  for (std::size_t i = first; i < last; ++i) {
    const Waits waits = block->fibers[i].waits;
    if (waits != what && waits != Waits::done) return false;
    any |= waits == what;
  }
  for (std::size_t i = first; any && i < last; ++i) {
    if (block->fibers[i].waits == what) block->fibers[i].waits = Waits::no;
  }
  return any;
}

// A stack on which the first switch to it returns into enter(), aligned as after a call.
void prepare(Fiber& fiber, unsigned char* stack) {
  fiber.waits = Waits::no;
  fiber.rounds[0] = fiber.rounds[1] = 0;
  fiber.fake_stack = nullptr;
  constexpr std::size_t saved = 6;
  auto* const top = reinterpret_cast<void**>(stack + kStack);
  std::fill(top - 2 - saved, top, nullptr);
  top[-2] = reinterpret_cast<void*>(&enter);
  fiber.stack = top - 2 - saved;
}

void run_block() {
  const std::size_t count = block->count;
  for (std::size_t i = 0; i < count; ++i) prepare(block->fibers[i], block->stacks.of(i, count));
  std::vector<std::size_t> warps((count + kWarp - 1) / kWarp);
  for (std::size_t w = 0; w < warps.size(); ++w) warps[w] = w;
  before_barrier(block->start);
  for (;;) {
    // Every warp until it waits for the block, its threads in an order that changes.
    std::shuffle(warps.begin(), warps.end(), block->order);
    for (const std::size_t w : warps) {
      const std::size_t first = w * kWarp, last = std::min(count, first + kWarp);
      do {
        const std::size_t turn = block->order() % (last - first);
        for (std::size_t k = 0; k < last - first; ++k) {
          const std::size_t i = first + (k + turn) % (last - first);
          if (block->fibers[i].waits == Waits::no) resume(i);
        }
      } while (release(first, last, Waits::warp));
    }
    if (release(0, count, Waits::block)) continue;
    const bool done = std::all_of(block->fibers.begin(), block->fibers.begin() + count,
                                  [](const Fiber& f) { return f.waits == Waits::done; });
    if (done) return after_barrier(block->end);
    std::fputs("emulation: threads of a warp wait at different barriers\n", stderr);
    std::abort();
  }
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  const dim3 g = config.gridDim, b = config.blockDim;
  const std::size_t threads = std::size_t{b.x} * b.y * b.z;
  if (threads < 1 || threads > 1024 || b.z > 64 || g.x < 1 || g.y < 1 || g.z < 1 ||
      g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes > kMostShared) return cudaErrorInvalidValue;
  thread_local std::unique_ptr<Block> own;
  if (!own) own = std::make_unique<Block>();
  block = own.get();
  block->scheduler_thread = this_thread();
  block->kernel = &kernel;
  block->count = threads;
  block->fibers.resize(std::max(threads, block->fibers.size()));
  block->warps.resize((threads + kWarp - 1) / kWarp);
  block->shared.reset(new unsigned char[config.dynamicSmemBytes + 1]);
  for (std::size_t i = 0; i < threads; ++i) {
    block->fibers[i].index = {static_cast<unsigned>(i % b.x), static_cast<unsigned>(i / b.x % b.y),
                              static_cast<unsigned>(i / b.x / b.y)};
  }
  blockDim = b;
  gridDim = g;
  for (unsigned z = 0; z < g.z; ++z) {
    for (unsigned y = 0; y < g.y; ++y) {
      for (unsigned x = 0; x < g.x; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
    }
  }
  return cudaSuccess;
}

void* dynamic_shared_memory() {
  const auto at = reinterpret_cast<std::uintptr_t>(block->shared.get());
  static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 16);
  return reinterpret_cast<void*>(at);
}

void meet() { wait(Waits::warp, block->warps[block->current / kWarp].barrier); }

void give(const void* mine, std::size_t bytes) {
  std::memcpy(block->warps[block->current / kWarp].given[lane()], mine, bytes);
  meet();
}

const void* given(unsigned lane) { return block->warps[block->current / kWarp].given[lane]; }

unsigned lane() { return static_cast<unsigned>(block->current % kWarp); }

}  // namespace ccamerge::emulation

void __syncthreads() {
  ccamerge::emulation::wait(ccamerge::emulation::Waits::block, ccamerge::emulation::block->barrier);
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      break;
  }
  return "cudaErrorInvalidDevice";
}

const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {"emulation", 9, 0, std::size_t{4} << 30, 4};
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrMultiProcessorCount
               ? 4
               : static_cast<int>(ccamerge::emulation::kMostShared);
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = ::operator new(bytes, std::align_val_t{256});
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  ::operator delete(memory, std::align_val_t{256});
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
