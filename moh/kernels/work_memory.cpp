#include "moh/kernels/work_memory.h"

#include <cstdlib>
#include <vector>

#include "moh/base/error.h"

namespace moh::kernels {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kMostKept = 0;  // so that the sanitizer sees the end of every block
#else
constexpr size_t kMostKept = size_t{64} << 20;
#endif
constexpr size_t kMostBlocks = 32;

struct Kept {  // oldest first
  std::vector<WorkMemory> blocks;
  size_t bytes = 0;

  void free_block(size_t i) {
    bytes -= blocks[i].bytes;
    std::free(blocks[i].data);
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
  }
  ~Kept() {
    while (!blocks.empty()) free_block(blocks.size() - 1);
  }
};
thread_local Kept kept;

}  // namespace

WorkMemory take_work_memory(size_t bytes) {
  bytes = (bytes > 0 ? bytes + 63 : 64) / 64 * 64;
  size_t best = kept.blocks.size();
  for (size_t i = 0; i < kept.blocks.size(); ++i) {
    const size_t size = kept.blocks[i].bytes;
    if (size >= bytes && size / 2 <= bytes && (best == kept.blocks.size() || size < kept.blocks[best].bytes)) best = i;
  }
  if (best < kept.blocks.size()) {
    const WorkMemory memory = kept.blocks[best];
    kept.bytes -= memory.bytes;
    kept.blocks.erase(kept.blocks.begin() + static_cast<std::ptrdiff_t>(best));
    return memory;
  }
  void* data = std::aligned_alloc(64, bytes);
  while (data == nullptr && !kept.blocks.empty()) {
    kept.free_block(0);
    data = std::aligned_alloc(64, bytes);
  }
  if (data == nullptr) fail("[kernels] out of memory: cannot allocate ", bytes, " bytes");
  return {data, bytes};
}

void return_work_memory(WorkMemory memory) {
  if (memory.bytes > kMostKept) return std::free(memory.data);
  while (!kept.blocks.empty() && (kept.bytes + memory.bytes > kMostKept || kept.blocks.size() == kMostBlocks)) {
    kept.free_block(0);
  }
  kept.blocks.push_back(memory);
  kept.bytes += memory.bytes;
}

}  // namespace moh::kernels
