// Memory that kernels work in: packed keys, blocks of scores. The C library gives large blocks back to the system as
// they are freed, and fetching them anew, page by page, costs a small call as much as its work. So every thread keeps
// what it used, up to 64 MiB, for its next call.
#pragma once

#include <stddef.h>

namespace moh::kernels {

struct WorkMemory {
  void* data;
  size_t bytes;
};

// At least `bytes`, aligned to 64, contents not initialised. Error when memory runs out.
WorkMemory take_work_memory(size_t bytes);
// Back to the thread that took it; the thread's end frees what is kept.
void return_work_memory(WorkMemory memory);

}  // namespace moh::kernels
