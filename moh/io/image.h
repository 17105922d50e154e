// Pictures from JPEG and PNG files as 8-bit RGB, and PNG writing. Torch-free, safe to call from several threads.
//
// Pixels are those of libjpeg-turbo with its default (accurate) transform and libpng without colour management, which
// is also what PyTorch's usual image readers give. Grey, palette, 16-bit, CMYK and transparent pictures become plain
// RGB (the alpha channel is dropped). A damaged or oversized file is one Error "[image] FILE: what is wrong".
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moh::io {

struct Image {
  std::int64_t width = 0, height = 0;
  std::vector<std::uint8_t> rgb;  // [height, width, 3]
};

struct ImageLimits {
  std::uint64_t file_bytes = 256 << 20;
  std::int64_t pixels = 1 << 27;  // 134 million; a small file can claim far more
};

Image decode_image(std::span<const std::byte> file, const std::string& label, const ImageLimits& limits = {});
Image load_image(const std::string& path, const ImageLimits& limits = {});

// Crash-safe (moh/io/files.h).
void save_png(const std::string& path, const Image& image);
// The same as bytes, for pictures inside a report.
std::string encode_png(const Image& image);

}  // namespace moh::io
