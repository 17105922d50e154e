#include "moh/io/safetensors.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_result_or_error([&] {
    const io::SafetensorsFile file(fuzz::bytes_of(data, size), "fuzz");
    std::uint64_t sum = file.metadata().size(), bytes = 0;
    for (const io::TensorView& tensor : file.tensors()) {
      for (const std::byte byte : tensor.bytes) sum += static_cast<std::uint64_t>(byte);
      bytes += tensor.bytes.size();
      fuzz::require(file.find(tensor.name) == &tensor);
    }
    fuzz::require(bytes < size || sum == ~std::uint64_t{0});  // `sum` keeps the reads
  });
  return 0;
}
