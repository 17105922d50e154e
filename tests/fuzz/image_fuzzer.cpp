// JPEG and PNG; a PNG also with the checksums of its chunks put right, without which hardly a change gets past libpng.
#include <png.h>
#include <zlib.h>

#include "moh/io/image.h"
#include "tests/fuzz/fuzz.h"

using namespace moh;

namespace {

constexpr std::size_t kSignatureBytes = 8, kLengthBytes = 4, kTypeBytes = 4, kSumBytes = 4;

std::string with_right_checksums(std::string_view png) {
  std::string file(png);
  auto* const bytes = reinterpret_cast<png_bytep>(file.data());
  for (std::size_t at = kSignatureBytes; at + kLengthBytes + kTypeBytes + kSumBytes <= file.size();) {
    const std::size_t length = png_get_uint_32(bytes + at);
    at += kLengthBytes;
    if (length > file.size() - at - kTypeBytes - kSumBytes) break;
    const auto sum = crc32(0, bytes + at, static_cast<uInt>(kTypeBytes + length));
    at += kTypeBytes + length;
    png_save_uint_32(bytes + at, static_cast<png_uint_32>(sum));
    at += kSumBytes;
  }
  return file;
}

void read(std::span<const std::byte> file) {
  fuzz::expect_result_or_error([&] {
    const io::Image image = io::decode_image(file, "fuzz", {.file_bytes = 1 << 20, .pixels = 1 << 16});
    fuzz::require(image.width > 0 && image.height > 0 && image.width * image.height <= 1 << 16);
    fuzz::require(image.rgb.size() == static_cast<std::size_t>(3 * image.width * image.height));
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read(fuzz::bytes_of(data, size));
  if (size < kSignatureBytes || png_sig_cmp(data, 0, kSignatureBytes) != 0) return 0;
  const std::string repaired = with_right_checksums(fuzz::text_of(data, size));
  read(std::as_bytes(std::span(repaired)));
  return 0;
}
