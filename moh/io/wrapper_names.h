// Names of tensors as the model itself calls them, when something that was wrapped around it put its own before or
// between. Torch-free.
#pragma once

#include <string>
#include <vector>

namespace moh::io {

// Takes away, however deeply nested: `_orig_mod` (torch.compile), `_fsdp_wrapped_module` and
// `_checkpoint_wrapped_module` wherever they stand; `module.` (DataParallel, DistributedDataParallel) and `model.`
// (Lightning and training loops) where every name begins so. The `model.` of LLaMA's own names stays.
void strip_wrappers(std::vector<std::string>& names);

}  // namespace moh::io
