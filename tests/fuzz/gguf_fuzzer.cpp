#include "moh/io/gguf.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_result_or_error([&] {
    const io::GgufFile file(fuzz::bytes_of(data, size), "fuzz");
    std::uint64_t bytes = 0;
    for (const io::GgufTensor& tensor : file.tensors()) {
      fuzz::require(file.find(tensor.name) == &tensor);
      bytes += tensor.bytes.size();
      if (tensor.type->decode == nullptr) continue;
      std::vector<float> numbers(tensor.bytes.size() / tensor.type->bytes * tensor.type->values);
      io::dequantize(*tensor.type, tensor.bytes, numbers.data());
    }
    fuzz::require(bytes <= size);
    // Every key as every type: a value or an error.
    for (const std::string& key : file.keys()) {
      fuzz::require(file.has(key));
      fuzz::expect_result_or_error([&] { file.text(key); });
      fuzz::expect_result_or_error([&] { file.integer(key); });
      fuzz::expect_result_or_error([&] { file.number(key); });
      fuzz::expect_result_or_error([&] { file.flag(key); });
      fuzz::expect_result_or_error([&] { file.texts(key); });
      fuzz::expect_result_or_error([&] { file.integers(key); });
      fuzz::expect_result_or_error([&] { file.numbers(key); });
    }
  });
  return 0;
}
