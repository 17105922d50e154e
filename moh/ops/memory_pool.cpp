#include "moh/ops/memory_pool.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#include "moh/base/error.h"

namespace moh::ops {
namespace {

constexpr std::size_t kAlignment = 64;

// Stands before each block.
struct alignas(kAlignment) Header {
  std::size_t bytes;
};

class PoolAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* block = take(rounded);
    return {block, block, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

  static PoolAllocator& instance() {
    static auto* const pool = new PoolAllocator;  // outlives every tensor
    return *pool;
  }

  void open() {
    const std::lock_guard lock(mutex_);
    MOH_CHECK(!open_, "[memory_pool] there is one already");
    open_ = true;
    blocks_ = 0;
  }
  void close() {
    const std::lock_guard lock(mutex_);
    open_ = false;
    for (auto& [size, free] : free_) {
      for (void* block : free) give_back(block);
    }
    free_.clear();
  }
  std::int64_t blocks() const {
    const std::lock_guard lock(mutex_);
    return blocks_;
  }

 private:
  static Header* header_of(void* block) { return static_cast<Header*>(block) - 1; }
  static void give_back(void* block) { std::free(header_of(block)); }

  static void release(void* block) {
    if (block == nullptr) return;
    PoolAllocator& pool = instance();
    const std::lock_guard lock(pool.mutex_);
    if (pool.open_) {
      pool.free_[header_of(block)->bytes].push_back(block);
    } else {
      give_back(block);
    }
  }

  void* take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    std::vector<void*>& free = free_[bytes];
    if (!free.empty()) {
      void* block = free.back();
      free.pop_back();
      return block;
    }
    void* memory = std::aligned_alloc(kAlignment, sizeof(Header) + bytes);
    if (memory == nullptr) throw std::bad_alloc();
    auto* header = new (memory) Header{bytes};
    ++blocks_;
    return header + 1;
  }

  mutable std::mutex mutex_;
  bool open_ = false;
  std::int64_t blocks_ = 0;
  std::unordered_map<std::size_t, std::vector<void*>> free_;
};

constexpr std::uint8_t kPriority = 0;
c10::Allocator* before = nullptr;

}  // namespace

MemoryPool::MemoryPool() {
  PoolAllocator::instance().open();
  before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&PoolAllocator::instance(), kPriority);
}

MemoryPool::~MemoryPool() {
  c10::SetCPUAllocator(before, kPriority);
  PoolAllocator::instance().close();
}

PausedMemoryPool::PausedMemoryPool() {
  MOH_CHECK(c10::GetCPUAllocator() == &PoolAllocator::instance(), "[memory_pool] there is none to pause");
  c10::SetCPUAllocator(before, kPriority);
}
PausedMemoryPool::~PausedMemoryPool() { c10::SetCPUAllocator(&PoolAllocator::instance(), kPriority); }

std::int64_t MemoryPool::system_blocks() const { return PoolAllocator::instance().blocks(); }

}  // namespace moh::ops
