#include "moh/data/line_reader.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <vector>

#include "moh/base/error.h"

namespace moh::data {
namespace {

constexpr std::size_t kPiece = 1 << 18;
constexpr std::size_t kMaxLine = std::size_t{256} << 20;

}  // namespace

struct LineReader::Impl {
  enum class Kind { kPlain, kGzip, kZstd };
  std::string path;
  std::FILE* file = nullptr;
  Kind kind = Kind::kPlain;
  z_stream gzip{};
  ZSTD_DStream* zstd = nullptr;
  std::vector<unsigned char> raw = std::vector<unsigned char>(kPiece);
  std::size_t raw_at = 0, raw_end = 0;  // what is read and not unpacked yet
  bool inside = false;                  // a compressed stream has begun and not ended
  bool full = false;                    // the unpacker may hold more than the last piece had room for
  std::string text;                     // unpacked
  std::size_t text_at = 0;

  ~Impl() {
    if (file != nullptr) std::fclose(file);
    if (kind == Kind::kGzip) inflateEnd(&gzip);
    if (zstd != nullptr) ZSTD_freeDStream(zstd);
  }

  bool read_raw() {
    if (raw_at < raw_end) return true;
    raw_at = 0;
    raw_end = std::fread(raw.data(), 1, raw.size(), file);
    MOH_CHECK(raw_end > 0 || std::ferror(file) == 0, "[data] cannot read ", path);
    return raw_end > 0;
  }

  // Appends some more to `text`; false: the file ends.
  bool more() {
    if (!full && !read_raw()) {
      MOH_CHECK(!inside, "[data] ", path, " is cut off: its compressed data do not end");
      return false;
    }
    if (kind == Kind::kPlain) {
      text.append(reinterpret_cast<const char*>(raw.data()) + raw_at, raw_end - raw_at);
      raw_at = raw_end;
      return true;
    }
    const std::size_t before = text.size();
    text.resize(before + kPiece);
    std::size_t made = 0;
    if (kind == Kind::kGzip) {
      if (!inside && !full) inflateReset(&gzip);
      gzip.next_in = raw.data() + raw_at;
      gzip.avail_in = static_cast<uInt>(raw_end - raw_at);
      gzip.next_out = reinterpret_cast<Bytef*>(text.data() + before);
      gzip.avail_out = kPiece;
      const int status = inflate(&gzip, Z_NO_FLUSH);
      MOH_CHECK(status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR, "[data] ", path,
                " is damaged: its gzip data cannot be unpacked");
      inside = status != Z_STREAM_END;  // another member may follow
      raw_at = raw_end - gzip.avail_in;
      made = kPiece - gzip.avail_out;
    } else {
      ZSTD_inBuffer in{raw.data(), raw_end, raw_at};
      ZSTD_outBuffer out{text.data() + before, kPiece, 0};
      const std::size_t status = ZSTD_decompressStream(zstd, &out, &in);
      MOH_CHECK(ZSTD_isError(status) == 0, "[data] ", path, " is damaged: ", ZSTD_getErrorName(status));
      inside = status != 0;
      raw_at = in.pos;
      made = out.pos;
    }
    full = inside && made == kPiece;
    text.resize(before + made);
    return true;
  }
};

LineReader::LineReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->file = std::fopen(path.c_str(), "rb");
  MOH_CHECK(impl_->file != nullptr, "[data] cannot open ", path);
  if (!impl_->read_raw()) return;
  const auto begins = [&](std::initializer_list<unsigned char> magic) {
    return impl_->raw_end >= magic.size() && std::equal(magic.begin(), magic.end(), impl_->raw.begin());
  };
  if (begins({0x1f, 0x8b})) {
    constexpr int kGzipFrame = 15 + 16;
    MOH_CHECK(inflateInit2(&impl_->gzip, kGzipFrame) == Z_OK, "[data] no memory to unpack ", path);
    impl_->kind = Impl::Kind::kGzip;
  } else if (begins({0x28, 0xb5, 0x2f, 0xfd})) {
    impl_->zstd = ZSTD_createDStream();
    MOH_CHECK(impl_->zstd != nullptr, "[data] no memory to unpack ", path);
    impl_->kind = Impl::Kind::kZstd;
  }
  MOH_CHECK(!begins({'P', 'A', 'R', '1'}), "[data] ", path,
            " is a Parquet table, which needs Apache Arrow to read; write its text column as JSON lines first (Python: "
            "pandas.read_parquet(FILE)[[\"text\"]].to_json(OUT, orient=\"records\", lines=True))");
}

LineReader::~LineReader() = default;

bool LineReader::next(std::string& line) {
  Impl& in = *impl_;
  std::size_t searched = in.text_at;
  for (;;) {
    const std::size_t end = in.text.find('\n', searched);
    if (end != std::string::npos) {
      line.assign(in.text, in.text_at, end - in.text_at);
      in.text_at = end + 1;
      break;
    }
    searched = in.text.size() - in.text_at;
    in.text.erase(0, in.text_at);
    in.text_at = 0;
    MOH_CHECK(in.text.size() <= kMaxLine, "[data] ", in.path, " has a line of more than ", kMaxLine >> 20, " MB");
    if (in.more()) continue;
    if (in.text.empty()) return false;
    line = std::move(in.text);
    in.text.clear();
    break;
  }
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return true;
}

}  // namespace moh::data
