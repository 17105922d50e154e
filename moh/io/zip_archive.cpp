// A zip archive is read from its end: the end record names the place of the table of contents (the central directory),
// whose records name the place of each entry's local header, after which the bytes lie.
#include "moh/io/zip_archive.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "moh/base/error.h"
#include "moh/io/zip_bytes.h"

namespace moh::io {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50;
constexpr std::uint32_t kEnd64 = 0x06064b50, kEnd64Locator = 0x07064b50;
constexpr std::size_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20;
constexpr std::size_t kMaxComment = 0xffff;

template <class T>
T number_at(Bytes bytes, std::size_t place) {  // little-endian; the caller has checked the place
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<T>(std::to_integer<std::uint64_t>(bytes[place + i]) << (8 * i));
  }
  return value;
}

bool fits(Bytes bytes, std::uint64_t place, std::uint64_t size) {
  return place <= bytes.size() && size <= bytes.size() - place;
}

class Reader {
 public:
  Reader(Bytes file, const std::string& label) : file_(file), prefix_("[zip] " + label + ": ") {}

  std::vector<ZipEntry> read() {
    find_table();
    // A record has at least 46 bytes: a table cannot claim more entries than that leaves room for.
    MOH_CHECK(fits(file_, table_, table_bytes_) && entries_ <= table_bytes_ / kCentralBytes, prefix_,
              "the table of contents lies outside the file; is it cut short?");
    std::vector<ZipEntry> entries;
    std::uint64_t place = table_;
    for (std::uint64_t i = 0; i < entries_; ++i) entries.push_back(read_record(place));
    return entries;
  }

 private:
  template <class... What>
  [[noreturn]] void complain(const What&... what) const {
    fail(prefix_, what...);
  }

  void find_table() {
    const std::size_t last = file_.size() < kEndBytes ? 0 : file_.size() - kEndBytes;
    std::optional<std::size_t> end;
    for (std::size_t back = 0; file_.size() >= kEndBytes && back <= std::min(last, kMaxComment); ++back) {
      if (number_at<std::uint32_t>(file_, last - back) != kEnd) continue;
      end = last - back;
      break;
    }
    if (!end) complain("the archive has no end record; is the file cut short?");
    entries_ = number_at<std::uint16_t>(file_, *end + 10);
    table_bytes_ = number_at<std::uint32_t>(file_, *end + 12);
    table_ = number_at<std::uint32_t>(file_, *end + 16);
    if (*end < kLocatorBytes || number_at<std::uint32_t>(file_, *end - kLocatorBytes) != kEnd64Locator) return;
    const auto end64 = number_at<std::uint64_t>(file_, *end - kLocatorBytes + 8);
    if (!fits(file_, end64, kEnd64Bytes) || number_at<std::uint32_t>(file_, end64) != kEnd64) {
      complain("the 64-bit end record lies outside the file");
    }
    entries_ = number_at<std::uint64_t>(file_, end64 + 32);
    table_bytes_ = number_at<std::uint64_t>(file_, end64 + 40);
    table_ = number_at<std::uint64_t>(file_, end64 + 48);
  }

  ZipEntry read_record(std::uint64_t& place) const {
    const std::uint64_t table_end = table_ + table_bytes_;
    if (place > table_end || table_end - place < kCentralBytes || number_at<std::uint32_t>(file_, place) != kCentral) {
      complain("the table of contents is damaged");
    }
    const auto flags = number_at<std::uint16_t>(file_, place + 8), method = number_at<std::uint16_t>(file_, place + 10);
    std::uint64_t packed = number_at<std::uint32_t>(file_, place + 20),
                  size = number_at<std::uint32_t>(file_, place + 24);
    const std::size_t name_bytes = number_at<std::uint16_t>(file_, place + 28);
    const std::size_t extra_bytes = number_at<std::uint16_t>(file_, place + 30);
    const std::size_t comment_bytes = number_at<std::uint16_t>(file_, place + 32);
    std::uint64_t local = number_at<std::uint32_t>(file_, place + 42);
    if (table_end - place - kCentralBytes < name_bytes + extra_bytes + comment_bytes) {
      complain("the table of contents is damaged");
    }
    const Bytes name = file_.subspan(place + kCentralBytes, name_bytes);
    ZipEntry entry;
    entry.checksum = number_at<std::uint32_t>(file_, place + 16);
    entry.name.assign(reinterpret_cast<const char*>(name.data()), name.size());
    read_zip64(file_.subspan(place + kCentralBytes + name_bytes, extra_bytes), size, packed, local);
    place += kCentralBytes + name_bytes + extra_bytes + comment_bytes;

    constexpr std::uint16_t kStored = 0, kDeflated = 8;
    entry.packed = (flags & 1U) != 0 || method != kStored || packed != size;
    entry.deflated = (flags & 1U) == 0 && method == kDeflated;
    entry.size = size;
    if (!fits(file_, local, kLocalBytes) || number_at<std::uint32_t>(file_, local) != kLocal) {
      complain("an entry's header lies outside the file; is it cut short?");
    }
    const std::uint64_t begin =
        local + kLocalBytes + number_at<std::uint16_t>(file_, local + 26) + number_at<std::uint16_t>(file_, local + 28);
    if (!fits(file_, begin, packed)) complain("an entry of ", packed, " bytes ends outside the file; is it cut short?");
    entry.bytes = file_.subspan(begin, packed);
    return entry;
  }

  // Fields that a 32-bit record marks with all ones stand in the extra field 1, in this order.
  void read_zip64(Bytes extra, std::uint64_t& size, std::uint64_t& packed, std::uint64_t& local) const {
    constexpr std::uint64_t kElsewhere = 0xffffffff;
    if (size != kElsewhere && packed != kElsewhere && local != kElsewhere) return;
    while (extra.size() >= 4) {
      const auto id = number_at<std::uint16_t>(extra, 0);
      const std::size_t bytes = number_at<std::uint16_t>(extra, 2);
      if (bytes > extra.size() - 4) break;
      if (id == 1) {
        Bytes field = extra.subspan(4, bytes);
        for (std::uint64_t* value : {&size, &packed, &local}) {
          if (*value != kElsewhere) continue;
          if (field.size() < 8) complain("the table of contents is damaged");
          *value = number_at<std::uint64_t>(field, 0);
          field = field.subspan(8);
        }
        return;
      }
      extra = extra.subspan(4 + bytes);
    }
    complain("the table of contents is damaged");
  }

  Bytes file_;
  std::string prefix_;
  std::uint64_t entries_ = 0, table_ = 0, table_bytes_ = 0;
};

}  // namespace

bool is_zip(std::span<const std::byte> file) { return file.size() >= 4 && number_at<std::uint32_t>(file, 0) == kLocal; }

std::vector<ZipEntry> read_zip(std::span<const std::byte> file, const std::string& label) {
  return Reader(file, label).read();
}

std::vector<std::byte> unpack(const ZipEntry& entry, const std::string& label) {
  const std::string prefix = "[zip] " + label + ": ";
  MOH_CHECK(entry.deflated, prefix, "packed in a way that is not read, or encrypted; save it again with np.savez");
  // Deflate makes at most 1032 bytes of one: what claims more would only cost memory.
  constexpr std::uint64_t kLargestGain = 1032;
  MOH_CHECK(entry.size / kLargestGain <= entry.bytes.size(), prefix, entry.bytes.size(), " bytes cannot unpack to ",
            entry.size);
  std::vector<std::byte> content(entry.size);
  z_stream stream{};
  constexpr int kWithoutHeader = -15;
  MOH_CHECK(inflateInit2(&stream, kWithoutHeader) == Z_OK, prefix, "no memory to unpack it");
  constexpr std::uint64_t kMost = 1U << 30;  // zlib counts in 32 bits
  std::uint64_t taken = 0, made = 0;
  int status = Z_OK;
  while (status == Z_OK) {
    const std::uint64_t give = std::min(kMost, entry.bytes.size() - taken),
                        room = std::min(kMost, content.size() - made);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(entry.bytes.data() + taken));
    stream.avail_in = static_cast<uInt>(give);
    stream.next_out = reinterpret_cast<Bytef*>(content.data() + made);
    stream.avail_out = static_cast<uInt>(room);
    status = inflate(&stream, Z_NO_FLUSH);
    taken += give - stream.avail_in;
    made += room - stream.avail_out;
    if (status == Z_OK && give == stream.avail_in && room == stream.avail_out) break;
  }
  inflateEnd(&stream);
  MOH_CHECK(status == Z_STREAM_END && made == content.size(), prefix, "damaged: it does not unpack to its ", entry.size,
            " bytes");
  std::uint32_t checksum = 0xffffffff;
  checksum = ~zip_crc(checksum, {reinterpret_cast<const unsigned char*>(content.data()), content.size()});
  MOH_CHECK(checksum == entry.checksum, prefix, "damaged: its checksum is wrong");
  return content;
}

}  // namespace moh::io
