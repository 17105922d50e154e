// While one of these lives, tensors on the CPU take their memory from blocks that were used before: a loop that does
// the same thing in every round gets no memory from the system after the first, and spares the page faults of fresh
// large blocks. One at a time in a process; blocks go back to the system with it.
#pragma once

#include <cstdint>

namespace moh::ops {

class MemoryPool {
 public:
  MemoryPool();
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  // Blocks that had to come from the system so far.
  std::int64_t system_blocks() const;
};

// While one of these lives, tensors take their memory as LibTorch gives it by itself; the pool keeps its blocks.
class PausedMemoryPool {
 public:
  PausedMemoryPool();
  ~PausedMemoryPool();
  PausedMemoryPool(const PausedMemoryPool&) = delete;
  PausedMemoryPool& operator=(const PausedMemoryPool&) = delete;
};

}  // namespace moh::ops
