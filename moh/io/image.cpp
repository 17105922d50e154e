#include "moh/io/image.h"

#include <png.h>
#include <setjmp.h>
#include <turbojpeg.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "moh/base/error.h"
#include "moh/io/files.h"

namespace moh::io {
namespace {

using Bytes = std::span<const std::byte>;

constexpr int kPngSignatureBytes = 8;

template <class... What>
[[noreturn]] void complain(const std::string& label, const What&... what) {
  fail("[image] ", label, ": ", what...);
}

void check_size(std::int64_t width, std::int64_t height, const std::string& label, const ImageLimits& limits) {
  if (width <= 0 || height <= 0) complain(label, "the picture is empty");
  if (height > limits.pixels / width) {
    complain(label, width, " x ", height, " pixels are more than the ", limits.pixels, " that are read");
  }
}

const unsigned char* data_of(Bytes bytes) { return reinterpret_cast<const unsigned char*>(bytes.data()); }

// ---- JPEG ----

struct TurboJpeg {
  tjhandle handle = tjInitDecompress();
  ~TurboJpeg() {
    if (handle != nullptr) tjDestroy(handle);
  }
  std::string error() const {
    std::string text = tjGetErrorStr2(handle);
    return text.substr(0, text.find('\n'));
  }
};

Image decode_jpeg(Bytes file, const std::string& label, const ImageLimits& limits) {
  TurboJpeg jpeg;
  MOH_CHECK(jpeg.handle != nullptr, "[image] libjpeg-turbo cannot start: out of memory?");
  int width = 0, height = 0, subsampling = 0, colours = 0;
  if (tjDecompressHeader3(jpeg.handle, data_of(file), file.size(), &width, &height, &subsampling, &colours) != 0) {
    complain(label, "damaged JPEG: ", jpeg.error());
  }
  check_size(width, height, label, limits);
  const bool is_cmyk = colours == TJCS_CMYK || colours == TJCS_YCCK;
  Image image{width, height, {}};
  const auto pixels = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
  std::vector<std::uint8_t> decoded(pixels * (is_cmyk ? 4 : 3));
  // Progressive files of many scans cost time out of proportion to their size; the limit is the library's own remedy.
  const int status = tjDecompress2(jpeg.handle, data_of(file), file.size(), decoded.data(), width, /*pitch=*/0, height,
                                   is_cmyk ? TJPF_CMYK : TJPF_RGB, TJFLAG_LIMITSCANS);
  if (status != 0) {
    // Warnings leave a whole picture, unless the data ended before it did.
    const std::string why = jpeg.error();
    const bool harmless = tjGetErrorCode(jpeg.handle) == TJERR_WARNING && why.find("remature end") == std::string::npos;
    if (!harmless) complain(label, "damaged JPEG: ", why);
  }
  if (!is_cmyk) {
    image.rgb = std::move(decoded);
    return image;
  }
  image.rgb.resize(pixels * 3);
  for (std::size_t i = 0; i < pixels; ++i) {  // stored inverted, as Adobe does: 255 is no ink
    for (std::size_t c = 0; c < 3; ++c) {
      image.rgb[3 * i + c] = static_cast<std::uint8_t>(decoded[4 * i + c] * decoded[4 * i + 3] / 255);
    }
  }
  return image;
}

// ---- PNG ----

// What libpng's callbacks see. Errors leave libpng by longjmp, so the message is kept here.
struct PngMemory {
  Bytes file;
  std::size_t place = 0;
  std::string* out = nullptr;
  char error[200] = {};
};

[[noreturn]] void on_png_error(png_structp png, png_const_charp message) {
  auto* memory = static_cast<PngMemory*>(png_get_error_ptr(png));
  std::strncpy(memory->error, message, sizeof(memory->error) - 1);
  longjmp(png_jmpbuf(png), 1);
}
void on_png_warning(png_structp, png_const_charp) {}

void read_png_bytes(png_structp png, png_bytep to, std::size_t count) {
  auto* memory = static_cast<PngMemory*>(png_get_io_ptr(png));
  if (count > memory->file.size() - memory->place) png_error(png, "the data ends early; is the file cut short?");
  std::memcpy(to, memory->file.data() + memory->place, count);
  memory->place += count;
}

struct PngReader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  explicit PngReader(PngMemory& memory)
      : png(png_create_read_struct(PNG_LIBPNG_VER_STRING, &memory, on_png_error, on_png_warning)),
        info(png != nullptr ? png_create_info_struct(png) : nullptr) {}
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
};

// The three steps of reading stand apart from anything with a destructor: longjmp must not skip one.
bool read_png_header(PngReader& reader, PngMemory& memory) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_set_read_fn(reader.png, &memory, read_png_bytes);
  png_set_user_limits(reader.png, 0x7fffffff, 0x7fffffff);  // the product is checked before the next step
  png_set_chunk_cache_max(reader.png, 1000);
  png_set_chunk_malloc_max(reader.png, 8 << 20);
  png_read_info(reader.png, reader.info);
  return true;
}

bool set_png_format(PngReader& reader) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_set_expand(reader.png);    // palette and fewer than 8 bits to 8, transparent colours to alpha
  png_set_strip_16(reader.png);  // the upper 8 of 16 bits
  png_set_strip_alpha(reader.png);
  png_set_gray_to_rgb(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);  // takes memory for a row: megabytes for a row of millions
  return true;
}

bool read_png_rows(PngReader& reader, png_bytepp rows) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_read_image(reader.png, rows);
  png_read_end(reader.png, nullptr);
  return true;
}

Image decode_png(Bytes file, const std::string& label, const ImageLimits& limits) {
  PngMemory memory;
  memory.file = file;
  PngReader reader(memory);
  MOH_CHECK(reader.info != nullptr, "[image] libpng cannot start: out of memory?");
  if (!read_png_header(reader, memory)) complain(label, "damaged PNG: ", memory.error);
  const std::int64_t width = png_get_image_width(reader.png, reader.info);
  const std::int64_t height = png_get_image_height(reader.png, reader.info);
  check_size(width, height, label, limits);
  if (!set_png_format(reader)) complain(label, "damaged PNG: ", memory.error);
  const std::size_t row_bytes = png_get_rowbytes(reader.png, reader.info);
  if (row_bytes != static_cast<std::size_t>(width) * 3) complain(label, "damaged PNG: an unknown kind of pixel");
  Image image{width, height, std::vector<std::uint8_t>(row_bytes * static_cast<std::size_t>(height))};
  std::vector<png_bytep> rows;
  for (std::int64_t y = 0; y < height; ++y) rows.push_back(image.rgb.data() + static_cast<std::size_t>(y) * row_bytes);
  if (!read_png_rows(reader, rows.data())) complain(label, "damaged PNG: ", memory.error);
  return image;
}

void write_png_bytes(png_structp png, png_bytep from, std::size_t count) {
  static_cast<PngMemory*>(png_get_io_ptr(png))->out->append(reinterpret_cast<const char*>(from), count);
}
void flush_png(png_structp) {}

struct PngWriter {
  png_structp png = nullptr;
  png_infop info = nullptr;
  explicit PngWriter(PngMemory& memory)
      : png(png_create_write_struct(PNG_LIBPNG_VER_STRING, &memory, on_png_error, on_png_warning)),
        info(png != nullptr ? png_create_info_struct(png) : nullptr) {}
  ~PngWriter() { png_destroy_write_struct(&png, &info); }
  PngWriter(const PngWriter&) = delete;
  PngWriter& operator=(const PngWriter&) = delete;
};

bool write_png(PngWriter& writer, PngMemory& memory, png_uint_32 width, png_uint_32 height, png_bytepp rows) {
  if (setjmp(png_jmpbuf(writer.png)) != 0) return false;
  png_set_write_fn(writer.png, &memory, write_png_bytes, flush_png);
  png_set_IHDR(writer.png, writer.info, width, height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_set_rows(writer.png, writer.info, rows);
  png_write_png(writer.png, writer.info, PNG_TRANSFORM_IDENTITY, nullptr);
  return true;
}

}  // namespace

Image decode_image(Bytes file, const std::string& label, const ImageLimits& limits) {
  const unsigned char* start = data_of(file);
  if (file.size() >= kPngSignatureBytes && png_sig_cmp(start, 0, kPngSignatureBytes) == 0) {
    return decode_png(file, label, limits);
  }
  if (file.size() >= 2 && start[0] == 0xff && start[1] == 0xd8) return decode_jpeg(file, label, limits);
  complain(label, file.empty() ? "the file is empty" : "neither JPEG nor PNG; convert it to one of them");
}

Image load_image(const std::string& path, const ImageLimits& limits) {
  const std::string content = read_file(path, limits.file_bytes);
  return decode_image(std::as_bytes(std::span(content)), path, limits);
}

std::string encode_png(const Image& image) {
  MOH_CHECK(image.width > 0 && image.height > 0 && image.width <= 1'000'000 && image.height <= 1'000'000 &&
                image.rgb.size() == static_cast<std::size_t>(image.width * image.height * 3),
            "[image] a picture to write must have width * height * 3 bytes, got ", image.width, " x ", image.height,
            " and ", image.rgb.size(), " bytes");
  std::string out;
  PngMemory memory;
  memory.out = &out;
  PngWriter writer(memory);
  MOH_CHECK(writer.info != nullptr, "[image] libpng cannot start: out of memory?");
  std::vector<png_bytep> rows;
  for (std::int64_t y = 0; y < image.height; ++y) {
    rows.push_back(const_cast<png_bytep>(image.rgb.data()) + y * image.width * 3);
  }
  const bool written = write_png(writer, memory, static_cast<png_uint_32>(image.width),
                                 static_cast<png_uint_32>(image.height), rows.data());
  MOH_CHECK(written, "[image] cannot write a PNG: ", memory.error);
  return out;
}

void save_png(const std::string& path, const Image& image) { write_file(path, encode_png(image)); }

}  // namespace moh::io
