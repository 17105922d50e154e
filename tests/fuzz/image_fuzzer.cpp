#include "moh/io/image.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::expect_result_or_error([&] {
    const io::Image image =
        io::decode_image(fuzz::bytes_of(data, size), "fuzz", {.file_bytes = 1 << 20, .pixels = 1 << 16});
    fuzz::require(image.width > 0 && image.height > 0 && image.width * image.height <= 1 << 16);
    fuzz::require(image.rgb.size() == static_cast<std::size_t>(3 * image.width * image.height));
  });
  return 0;
}
