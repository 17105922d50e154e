#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "tests/kernels/emulated_cuda/cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim;

namespace emulated_cuda {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 256 * 1024, kGrantedShared = 48 * 1024;

[[noreturn]] void stop(const char* what) {
  std::fprintf(stderr, "emulated CUDA: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
  std::abort();
}

enum class State { kReady, kAtBlock, kAtWarp, kDone };

// One thread of a block, on a stack of its own that serves block after block.
struct Thread {
  unsigned index = 0;
  State state = State::kDone;
  std::uint32_t offer = 0;
  ucontext_t start;
  jmp_buf place;
  bool started = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::uint32_t> offered;  // by every thread when its warp last came together
  const std::function<void()>* work = nullptr;
  Thread* running = nullptr;
  jmp_buf scheduler;
  std::uint32_t random = 1;
};
Block block;

struct Shared {
  void* memory;
  std::size_t bytes;
};
std::vector<Shared>& shared_memories() {
  static std::vector<Shared> all;
  return all;
}
std::map<const void*, std::size_t>& allowed_shared() {
  static std::map<const void*, std::size_t> all;
  return all;
}

// setjmp and longjmp between stacks: unlike swapcontext, without a call of the system each time.
void leave(State state) {
  Thread& thread = *block.running;
  thread.state = state;
  if (_setjmp(thread.place) == 0) _longjmp(block.scheduler, 1);
}

void thread_main() {
  for (;;) {
    (*block.work)();
    leave(State::kDone);
  }
}

void resume(Thread& thread) {
  threadIdx.x = thread.index;
  block.running = &thread;
  if (_setjmp(block.scheduler) != 0) return;
  if (thread.started) _longjmp(thread.place, 1);
  thread.started = true;
  getcontext(&thread.start);
  thread.start.uc_stack.ss_sp = thread.stack.get();
  thread.start.uc_stack.ss_size = kStack;
  thread.start.uc_link = nullptr;
  makecontext(&thread.start, thread_main, 0);
  setcontext(&thread.start);
}

// Runs the ready threads of a warp until each waits or is done, in an order that changes; lets the warp go on where
// all of its lanes met. True if anything ran.
bool run_warp(unsigned first, unsigned count) {
  bool ran = false;
  block.random = block.random * 1664525 + 1013904223;
  const unsigned turn = block.random >> 16;
  unsigned meeting = 0;
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = *block.threads[first + (i + turn) % count];
    if (thread.state == State::kReady) {
      thread.state = State::kDone;
      resume(thread);
      ran = true;
    }
    meeting += thread.state == State::kAtWarp ? 1 : 0;
  }
  if (meeting == 0) return ran;
  if (meeting != kWarp) stop("not every lane of the warp came to a shuffle");
  for (unsigned i = first; i < first + kWarp; ++i) {
    block.offered[i] = block.threads[i]->offer;
    block.threads[i]->state = State::kReady;
  }
  return true;
}

void run_block(unsigned count) {
  for (unsigned i = 0; i < count; ++i) block.threads[i]->state = State::kReady;
  for (;;) {
    block.random = block.random * 1664525 + 1013904223;
    const unsigned warps = (count + kWarp - 1) / kWarp, turn = block.random >> 16;
    bool ran = false;
    for (unsigned w = 0; w < warps; ++w) {
      const unsigned first = (w + turn) % warps * kWarp;
      while (run_warp(first, std::min(kWarp, count - first))) ran = true;
    }
    unsigned waiting = 0;
    for (unsigned i = 0; i < count; ++i) waiting += block.threads[i]->state == State::kAtBlock ? 1 : 0;
    if (waiting == 0) return;
    if (waiting != count) stop("not every thread of the block came to __syncthreads");
    if (!ran) stop("nothing can go on");
    for (unsigned i = 0; i < count; ++i) block.threads[i]->state = State::kReady;
  }
}

}  // namespace

SharedMemory::SharedMemory(void* memory, std::size_t bytes) { shared_memories().push_back({memory, bytes}); }

int lane() { return static_cast<int>(block.running->index % kWarp); }

std::uint32_t exchange(unsigned mask, std::uint32_t offer, int source) {
  if (mask != 0xffffffffU) stop("a shuffle of a part of the warp");
  Thread& thread = *block.running;
  thread.offer = offer;
  leave(State::kAtWarp);
  return block.offered[thread.index / kWarp * kWarp + static_cast<unsigned>(source)];
}

void run(const void* kernel, const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const unsigned count = config.blockDim.x;
  if (count == 0 || count > 1024 || config.gridDim.x == 0) stop("a launch of no threads, or of too many");
  const std::size_t allowed = allowed_shared().contains(kernel) ? allowed_shared()[kernel] : kGrantedShared;
  if (config.dynamicSmemBytes > allowed) stop("more shared memory than was asked for");
  while (block.threads.size() < count) {
    block.threads.push_back(std::make_unique<Thread>());
    block.threads.back()->index = static_cast<unsigned>(block.threads.size()) - 1;
  }
  block.offered.resize(block.threads.size());
  block.work = &thread;
  blockDim = config.blockDim;
  for (unsigned i = 0; i < config.gridDim.x; ++i) {
    blockIdx.x = i;
    for (const Shared& shared : shared_memories()) {
      std::memset(shared.memory, 0xff, std::min(shared.bytes, config.dynamicSmemBytes + 4096));
    }
    run_block(count);
    for (const Shared& shared : shared_memories()) {  // nobody may write behind what the launch asked for
      const auto* bytes = static_cast<const unsigned char*>(shared.memory);
      for (std::size_t b = config.dynamicSmemBytes; b < std::min(shared.bytes, config.dynamicSmemBytes + 4096); ++b) {
        if (bytes[b] != 0xff) stop("a write behind the block's shared memory");
      }
    }
  }
}

}  // namespace emulated_cuda

using namespace emulated_cuda;

void __syncthreads() { leave(State::kAtBlock); }
unsigned __ballot_sync(unsigned mask, bool value) {
  exchange(mask, value ? 1U : 0U, 0);
  const unsigned first = block.running->index / kWarp * kWarp;
  unsigned bits = 0;
  for (unsigned i = 0; i < kWarp; ++i) bits |= block.offered[first + i] << i;
  return bits;
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "out of memory"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 0;
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t) {
  *memory = std::malloc(bytes);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value > 163 * 1024) return cudaErrorMemoryAllocation;  // a block of sm_80
  allowed_shared()[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}
