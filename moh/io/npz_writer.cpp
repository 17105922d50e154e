#include "moh/io/npz_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/npy.h"
#include "moh/io/shape_bytes.h"
#include "moh/io/zip_bytes.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;
constexpr const char* kEntry = "arr_0.npy";
constexpr std::uint16_t kZip64Version = 45;
constexpr std::size_t kChecksumOffset = 14;  // in a local header

// Fields that a local header and the table of contents have in common; sizes stand in the zip64 field.
void put_common(std::string& out, std::uint32_t checksum) {
  put_little<std::uint16_t>(out, kZip64Version);
  put_little<std::uint16_t>(out, 0);  // flags
  put_little<std::uint16_t>(out, 0);  // stored
  put_little<std::uint16_t>(out, 0);  // time
  put_little<std::uint16_t>(out, kZipDate);
  put_little<std::uint32_t>(out, checksum);
  put_little<std::uint32_t>(out, 0xffffffff);
  put_little<std::uint32_t>(out, 0xffffffff);
  put_little<std::uint16_t>(out, static_cast<std::uint16_t>(std::strlen(kEntry)));
}

std::string local_header(std::uint64_t size) {
  std::string out = "PK\x03\x04";
  put_common(out, 0);
  put_little<std::uint16_t>(out, 20);  // length of the extra field
  out += kEntry;
  put_little<std::uint16_t>(out, 1);  // zip64
  put_little<std::uint16_t>(out, 16);
  put_little<std::uint64_t>(out, size);
  put_little<std::uint64_t>(out, size);
  return out;
}

std::string contents(std::uint64_t size, std::uint64_t end, std::uint32_t checksum) {
  std::string entry = "PK\x01\x02";
  put_little<std::uint16_t>(entry, kZip64Version);
  put_common(entry, checksum);
  put_little<std::uint16_t>(entry, 28);  // extra field
  put_little<std::uint16_t>(entry, 0);   // comment
  put_little<std::uint16_t>(entry, 0);   // disk
  put_little<std::uint16_t>(entry, 0);
  put_little<std::uint32_t>(entry, 0);
  put_little<std::uint32_t>(entry, 0xffffffff);  // offset of the local header, in zip64
  entry += kEntry;
  put_little<std::uint16_t>(entry, 1);
  put_little<std::uint16_t>(entry, 24);
  put_little<std::uint64_t>(entry, size);
  put_little<std::uint64_t>(entry, size);
  put_little<std::uint64_t>(entry, 0);
  std::string out = entry;
  out += "PK\x06\x06";  // end of contents, zip64
  put_little<std::uint64_t>(out, 44);
  put_little<std::uint16_t>(out, kZip64Version);
  put_little<std::uint16_t>(out, kZip64Version);
  put_little<std::uint32_t>(out, 0);
  put_little<std::uint32_t>(out, 0);
  put_little<std::uint64_t>(out, 1);
  put_little<std::uint64_t>(out, 1);
  put_little<std::uint64_t>(out, entry.size());
  put_little<std::uint64_t>(out, end);
  out += "PK\x06\x07";  // where that is
  put_little<std::uint32_t>(out, 0);
  put_little<std::uint64_t>(out, end + entry.size());
  put_little<std::uint32_t>(out, 1);
  out += "PK\x05\x06";
  put_little<std::uint16_t>(out, 0);
  put_little<std::uint16_t>(out, 0);
  put_little<std::uint16_t>(out, 1);
  put_little<std::uint16_t>(out, 1);
  put_little<std::uint32_t>(out, static_cast<std::uint32_t>(entry.size()));
  put_little<std::uint32_t>(out, 0xffffffff);
  put_little<std::uint16_t>(out, 0);
  return out;
}

}  // namespace

NpzWriter::NpzWriter(std::string path, std::vector<std::int64_t> shape, Json what)
    : path_(std::move(path)), shape_(std::move(shape)) {
  MOH_CHECK(!fs::exists(path_), "[npz] ", path_, " is there already; remove it or choose another name");
  const std::string part = path_ + ".part", note = part + ".json";
  const auto bytes = shape_bytes(shape_, 1);
  MOH_CHECK(bytes && !shape_.empty() && shape_[0] > 0, "[npz] ", path_, ": an array without rows");
  row_bytes_ = *bytes / static_cast<std::uint64_t>(shape_[0]);
  const std::string npy = npy_head("u1", shape_);
  head_ = local_header(npy.size() + *bytes);
  zip_header_ = head_.size();
  head_ += npy;
  what["shape"] = shape_;
  const bool goes_on = fs::exists(part) && fs::exists(note);
  if (goes_on) {
    const Json before = parse_json(read_file(note, 1 << 24), note);
    for (const auto& item : what.items()) {
      MOH_CHECK(before.is_object() && before.contains(item.key()) && before[item.key()] == item.value(), "[npz] ", part,
                " was begun with another ", item.key(), "; remove it to start anew");
    }
  } else {
    write_file(note, what.dump(1) + "\n");
  }
  file_ = ::open(part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | (goes_on ? 0 : O_TRUNC), 0644);
  MOH_CHECK(file_ >= 0, "[npz] cannot write ", part, ": ", std::strerror(errno));
  struct stat status {};
  MOH_CHECK(::fstat(file_, &status) == 0, "[npz] cannot read ", part, ": ", std::strerror(errno));
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size < head_.size()) {
    write_at(0, head_);
  } else {
    rows_ = std::min<std::int64_t>(static_cast<std::int64_t>((size - head_.size()) / row_bytes_), shape_[0]);
  }
}

NpzWriter::~NpzWriter() {
  if (file_ >= 0) ::close(file_);
}

void NpzWriter::write_at(std::uint64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    MOH_CHECK(written > 0, "[npz] cannot write ", path_, ".part: ", std::strerror(errno));
    bytes.remove_prefix(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
}

void NpzWriter::append(std::span<const std::byte> rows) {
  const auto count = static_cast<std::int64_t>(rows.size() / row_bytes_);
  MOH_CHECK(rows.size() % row_bytes_ == 0 && rows_ + count <= shape_[0], "[npz] ", path_, ": ", rows.size(),
            " bytes are not whole rows of the array");
  write_at(head_.size() + static_cast<std::uint64_t>(rows_) * row_bytes_,
           {reinterpret_cast<const char*>(rows.data()), rows.size()});
  MOH_CHECK(::fdatasync(file_) == 0, "[npz] cannot write ", path_, ".part: ", std::strerror(errno));
  rows_ += count;
}

std::uint32_t NpzWriter::checksum() const {
  std::vector<unsigned char> buffer(1 << 20);
  std::uint32_t crc = 0xffffffff;
  const std::uint64_t end = head_.size() + static_cast<std::uint64_t>(shape_[0]) * row_bytes_;
  for (std::uint64_t at = zip_header_; at < end;) {
    const std::size_t wanted = std::min<std::uint64_t>(buffer.size(), end - at);
    const ssize_t got = ::pread(file_, buffer.data(), wanted, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    MOH_CHECK(got > 0, "[npz] cannot read ", path_, ".part back");
    crc = zip_crc(crc, {buffer.data(), static_cast<std::size_t>(got)});
    at += static_cast<std::uint64_t>(got);
  }
  return ~crc;
}

void NpzWriter::finish() {
  MOH_CHECK(rows_ == shape_[0], "[npz] ", path_, ": ", rows_, " of ", shape_[0], " rows are there");
  const std::uint64_t end = head_.size() + static_cast<std::uint64_t>(shape_[0]) * row_bytes_;
  const std::uint32_t crc = checksum();
  std::string patch;
  put_little(patch, crc);
  write_at(kChecksumOffset, patch);
  const std::string table = contents(end - zip_header_, end, crc);
  write_at(end, table);
  MOH_CHECK(::ftruncate(file_, static_cast<off_t>(end + table.size())) == 0 && ::fsync(file_) == 0,
            "[npz] cannot write ", path_, ".part: ", std::strerror(errno));
  ::close(file_);
  file_ = -1;
  fs::rename(path_ + ".part", path_);
  fs::remove(path_ + ".part.json");
  const std::string parent = fs::path(path_).parent_path();
  fsync_folder(parent.empty() ? "." : parent);
}

}  // namespace moh::io
