#include "moh/io/npy.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_result_or_error([&] {
    const io::NpyHeader header = io::read_npy_header(fuzz::bytes_of(data, size), "fuzz");
    std::int64_t count = 1;
    for (const std::int64_t extent : header.shape) count *= extent;
    fuzz::require(header.data_offset <= size && count >= 0 && static_cast<std::size_t>(count) <= size);
  });
  return 0;
}
