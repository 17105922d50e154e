#include "moh/io/image.h"

#include <gtest/gtest.h>
#include <turbojpeg.h>

#include <random>

#include "moh/io/files.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::io {
namespace {

using test::bytes_of;
using test::error_of;
using test::TempFolder;

Image smooth_picture(std::int64_t width, std::int64_t height) {
  Image image{width, height, {}};
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      image.rgb.push_back(static_cast<std::uint8_t>(255 * x / width));
      image.rgb.push_back(static_cast<std::uint8_t>(255 * y / height));
      image.rgb.push_back(static_cast<std::uint8_t>(128 + 60 * (x + y) / (width + height)));
    }
  }
  return image;
}

// By libjpeg-turbo's compressor: grey, 4:2:0 or 4:4:4 colour, or CMYK.
std::string jpeg_of(const Image& image, int subsampling = TJSAMP_444, int format = TJPF_RGB) {
  std::vector<std::uint8_t> pixels = image.rgb;
  if (format == TJPF_CMYK) {  // no ink but black: 255 is none
    pixels.clear();
    for (std::size_t i = 0; i < image.rgb.size(); i += 3) {
      pixels.insert(pixels.end(), {image.rgb[i], image.rgb[i + 1], image.rgb[i + 2], 255});
    }
  }
  const tjhandle handle = tjInitCompress();
  unsigned char* out = nullptr;
  unsigned long size = 0;
  tjCompress2(handle, pixels.data(), static_cast<int>(image.width), 0, static_cast<int>(image.height), format, &out,
              &size, subsampling, 95, 0);
  std::string bytes(reinterpret_cast<char*>(out), size);
  tjFree(out);
  tjDestroy(handle);
  return bytes;
}

int largest_difference(const Image& a, const Image& b) {
  EXPECT_EQ(a.width, b.width);
  EXPECT_EQ(a.height, b.height);
  EXPECT_EQ(a.rgb.size(), b.rgb.size());
  int largest = 0;
  for (std::size_t i = 0; i < std::min(a.rgb.size(), b.rgb.size()); ++i) {
    largest = std::max(largest, std::abs(int{a.rgb[i]} - int{b.rgb[i]}));
  }
  return largest;
}

TEST(Image, PngKeepsEveryByte) {
  const TempFolder folder;
  for (const auto& [width, height] : {std::pair{1, 1}, {7, 3}, {64, 65}}) {
    const Image image = smooth_picture(width, height);
    save_png(folder.file("x.png"), image);
    EXPECT_EQ(largest_difference(load_image(folder.file("x.png")), image), 0);
  }
  EXPECT_NE(error_of([] { encode_png({2, 2, {}}); }).find("width * height * 3"), std::string::npos);
}

TEST(Image, JpegOfAnyKindBecomesRgb) {
  const Image image = smooth_picture(48, 32);
  EXPECT_LE(largest_difference(decode_image(bytes_of(jpeg_of(image)), "t"), image), 8);
  EXPECT_LE(largest_difference(decode_image(bytes_of(jpeg_of(image, TJSAMP_420)), "t"), image), 16);
  EXPECT_LE(largest_difference(decode_image(bytes_of(jpeg_of(image, TJSAMP_444, TJPF_CMYK)), "t"), image), 8);
  const Image grey = decode_image(bytes_of(jpeg_of(image, TJSAMP_GRAY)), "t");
  ASSERT_EQ(grey.rgb.size(), image.rgb.size());
  for (std::size_t i = 0; i < grey.rgb.size(); i += 3) {
    const double luma = 0.299 * image.rgb[i] + 0.587 * image.rgb[i + 1] + 0.114 * image.rgb[i + 2];
    EXPECT_NEAR(grey.rgb[i], luma, 6);
    EXPECT_EQ(grey.rgb[i], grey.rgb[i + 1]);
    EXPECT_EQ(grey.rgb[i], grey.rgb[i + 2]);
  }
}

// PNG files of every colour type by hand: stored deflate blocks, so that no compressor of ours is in the way.
std::uint32_t crc_of(std::string_view bytes) {
  std::uint32_t crc = 0xffffffffU;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ (0xedb88320U & (0U - (crc & 1U)));
  }
  return ~crc;
}
std::string big_endian(std::uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}
std::string chunk(const std::string& type, const std::string& data) {
  return big_endian(static_cast<std::uint32_t>(data.size())) + type + data + big_endian(crc_of(type + data));
}
std::string png_by_hand(std::uint32_t width, std::uint32_t height, int bits, int colour, const std::string& extra,
                        const std::string& rows) {
  std::uint32_t a = 1, b = 0;
  for (const char c : rows) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  const auto size = static_cast<std::uint16_t>(rows.size());
  std::string deflate("\x78\x01\x01", 3);
  for (const std::uint16_t value : {size, static_cast<std::uint16_t>(~size)}) {
    deflate += static_cast<char>(value & 0xff);
    deflate += static_cast<char>(value >> 8);
  }
  deflate += rows + big_endian(b << 16 | a);
  const std::string header = big_endian(width) + big_endian(height) + static_cast<char>(bits) +
                             static_cast<char>(colour) + std::string(3, '\0');
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + extra + chunk("IDAT", deflate) + chunk("IEND", "");
}

std::vector<std::uint8_t> pixels_of(const std::string& png) { return decode_image(bytes_of(png), "t").rgb; }

TEST(Image, PngOfEveryColourTypeBecomesRgb) {
  using Pixels = std::vector<std::uint8_t>;
  EXPECT_EQ(pixels_of(png_by_hand(2, 1, 8, 0, "", std::string("\0\x10\x80", 3))),
            (Pixels{16, 16, 16, 128, 128, 128}));  // grey
  EXPECT_EQ(pixels_of(png_by_hand(4, 1, 1, 0, "", std::string("\0\xa0", 2))),
            (Pixels{255, 255, 255, 0, 0, 0, 255, 255, 255, 0, 0, 0}));  // one bit a pixel
  const std::string palette = chunk("PLTE", std::string("\x01\x02\x03\xf0\xe0\xd0", 6));
  const std::string transparent = chunk("tRNS", std::string("\0\x80", 2));
  EXPECT_EQ(pixels_of(png_by_hand(2, 1, 8, 3, palette + transparent, std::string("\0\1\0", 3))),
            (Pixels{240, 224, 208, 1, 2, 3}));
  EXPECT_EQ(pixels_of(png_by_hand(1, 1, 8, 6, "", std::string("\0\x09\x08\x07\x00", 5))), (Pixels{9, 8, 7}));  // RGBA
  EXPECT_EQ(pixels_of(png_by_hand(1, 1, 16, 2, "", std::string("\0\x12\xff\x34\x00\x56\x80", 7))),
            (Pixels{0x12, 0x34, 0x56}));  // the upper byte of 16
  // A colour profile's gamma changes nothing.
  EXPECT_EQ(pixels_of(png_by_hand(1, 1, 8, 0, chunk("gAMA", big_endian(100000)), std::string("\0\x40", 2))),
            (Pixels{64, 64, 64}));
}

TEST(Image, DamagedOrOversizedFilesAreOneError) {
  const auto error = [](const std::string& content) { return error_of([&] { decode_image(bytes_of(content), "t"); }); };
  const Image image = smooth_picture(40, 30);
  const std::string png = encode_png(image), jpeg = jpeg_of(image);
  EXPECT_EQ(error(""), "[image] t: the file is empty");
  EXPECT_NE(error("GIF89a").find("neither JPEG nor PNG"), std::string::npos);
  EXPECT_NE(error(jpeg.substr(0, jpeg.size() / 2)).find("damaged JPEG"), std::string::npos);
  EXPECT_NE(error(png.substr(0, png.size() / 2)).find("damaged PNG"), std::string::npos);
  EXPECT_NE(error(png.substr(0, 8)).find("damaged PNG"), std::string::npos);
  // A few bytes that claim a picture of 2^31 - 1 pixels square are refused before memory is asked for.
  const std::string bomb = png_by_hand(0x7fffffff, 0x7fffffff, 8, 2, "", std::string("\0", 1));
  EXPECT_NE(error(bomb).find("pixels are more than"), std::string::npos) << error(bomb);
  EXPECT_NE(error(png_by_hand(60000, 60000, 8, 2, "", std::string("\0", 1))).find("pixels are more than"),
            std::string::npos);
  ImageLimits small;
  small.pixels = 1199;
  EXPECT_NE(error_of([&] { decode_image(bytes_of(jpeg), "t", small); }).find("more than the 1199"), std::string::npos);
  const TempFolder folder;
  EXPECT_NE(error_of([&] { load_image(folder.file("none.jpg")); }).find("none.jpg"), std::string::npos);
  write_file(folder.file("x.png"), png);
  small.file_bytes = 10;
  EXPECT_NE(error_of([&] { load_image(folder.file("x.png"), small); }), "");
}

TEST(Image, DamagedBytesNeverCrash) {
  std::mt19937 random(2);
  const Image image = smooth_picture(40, 30);
  for (const std::string& whole : {encode_png(image), jpeg_of(image, TJSAMP_420), jpeg_of(image, TJSAMP_GRAY)}) {
    for (int round = 0; round < 2000; ++round) {
      std::string copy = whole;
      for (unsigned i = 0; i <= random() % 4; ++i) copy[random() % copy.size()] = static_cast<char>(random());
      if (round % 3 == 0) copy.resize(random() % copy.size());
      ImageLimits limits;
      limits.pixels = 1 << 20;
      const std::string error = error_of([&] { decode_image(bytes_of(copy), "t", limits); });
      EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    }
  }
}

}  // namespace
}  // namespace moh::io
