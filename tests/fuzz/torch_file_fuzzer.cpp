// torch.save checkpoints (.pth), and their pickle alone, which mutations of a whole archive reach rarely.
#include "moh/io/safetensors.h"
#include "moh/io/torch_file.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

namespace {

// Walks values by content, with a limit on depth: a list may hold itself.
std::uint64_t visit(const io::PickleValue& value, int depth) {
  std::uint64_t sum = io::kind_name(value).size() + value.text.size();
  if (value.tensor != nullptr) {
    // Every element lies inside the storage: the corners tell.
    std::int64_t last = value.tensor->offset;
    bool empty = false;
    for (std::size_t i = 0; i < value.tensor->shape.size(); ++i) {
      empty = empty || value.tensor->shape[i] == 0;
      last += (value.tensor->shape[i] - 1) * value.tensor->stride[i];
    }
    if (!empty) {
      const auto width = static_cast<std::size_t>(io::dtype_bytes(value.tensor->dtype));
      const auto storage = value.tensor->storage;
      fuzz::require(width > 0 && last >= 0 && (static_cast<std::size_t>(last) + 1) * width <= storage.size());
      sum += static_cast<std::uint64_t>(storage[static_cast<std::size_t>(last) * width]);
    }
  }
  if (depth == 0) return sum;
  for (const io::PickleValue* item : value.items) sum += visit(*item, depth - 1);
  return value.state == nullptr ? sum : sum + visit(*value.state, depth - 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_result_or_error([&] {
    const io::TorchFile file(fuzz::bytes_of(data, size), "fuzz");
    visit(file.root(), 3);
    file.tensors({"model", "state_dict", ""});
  });
  fuzz::expect_result_or_error([&] {
    const std::string storage(64, '\1');
    const io::Pickle pickle(fuzz::bytes_of(data, size), "fuzz", [&](const std::string&) {
      return std::as_bytes(std::span(storage.data(), storage.size()));
    });
    visit(pickle.root(), 3);
  });
  return 0;
}
