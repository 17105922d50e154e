// Event files for TensorBoard. A record is: length (u64), masked CRC of the length, the Event, masked CRC of the Event.
// The few protobuf fields used are encoded by hand:
//   Event   { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }
//   Summary { repeated Value value = 1; }   Value { string tag = 1; float simple_value = 2; }
#include "moh/io/event_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "moh/base/error.h"

namespace moh::io {
namespace {

constexpr std::size_t kFlushBytes = 64 * 1024;

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  constexpr std::uint32_t kCastagnoli = 0x82f63b78;  // reflected
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kCastagnoli : 0);
    table[i] = crc;
  }
  return table;
}

// TFRecord masks its checksums, so that a CRC over data that contains CRCs stays meaningful.
std::uint32_t masked_crc(std::string_view bytes) {
  static constexpr auto kTable = make_crc_table();
  std::uint32_t crc = ~std::uint32_t{0};
  for (const char c : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  crc = ~crc;
  return std::rotr(crc, 15) + 0xa282ead8u;
}

template <class Unsigned>
void put_fixed(std::string& out, Unsigned value) {
  for (std::size_t i = 0; i < sizeof(value); ++i) out += static_cast<char>(value >> (8 * i));
}

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
void put_key(std::string& out, int field, WireType type) { put_varint(out, (field << 3) | type); }

void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "localhost";
  return name;
}

}  // namespace

struct EventWriter::Impl {
  std::string path;
  int fd = -1;
  off_t written = 0;
  std::string pending;  // whole records, not yet in the file

  ~Impl() {
    if (fd >= 0) ::close(fd);
  }

  void open(const std::string& folder) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    MOH_CHECK(!error, "[event_writer] ", folder, ": cannot create the folder: ", error.message());
    const std::string stem = folder + "/events.out.tfevents." +
                             std::to_string(static_cast<std::int64_t>(seconds_now())) + "." + host_name() + "." +
                             std::to_string(::getpid());
    path = stem;
    // A second writer of this process within the same second gets a name of its own.
    for (int i = 1;; ++i) {
      fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (fd >= 0 || errno != EEXIST) break;
      path = stem + "." + std::to_string(i);
    }
    MOH_CHECK(fd >= 0, "[event_writer] ", path, ": cannot create: ", std::strerror(errno));
  }

  void add(std::int64_t step, int field, std::string_view content) {
    std::string event;
    put_key(event, 1, kFixed64);
    put_fixed(event, std::bit_cast<std::uint64_t>(seconds_now()));
    if (step != 0) {
      put_key(event, 2, kVarint);
      put_varint(event, static_cast<std::uint64_t>(step));
    }
    put_bytes(event, field, content);

    std::string length;
    put_fixed(length, static_cast<std::uint64_t>(event.size()));
    pending += length;
    put_fixed(pending, masked_crc(length));
    pending += event;
    put_fixed(pending, masked_crc(event));
    if (pending.size() >= kFlushBytes) flush();
  }

  // Records leave `pending` only when all of them are written, always to the same place: after a failure (a full disk)
  // the next flush overwrites the torn record.
  void flush() {
    std::size_t done = 0;
    while (done < pending.size()) {
      const ssize_t got =
          ::pwrite(fd, pending.data() + done, pending.size() - done, written + static_cast<off_t>(done));
      if (got < 0 && errno == EINTR) continue;
      MOH_CHECK(got >= 0, "[event_writer] ", path, ": cannot write: ", std::strerror(errno));
      done += static_cast<std::size_t>(got);
    }
    written += static_cast<off_t>(done);
    pending.clear();
  }
};

EventWriter::EventWriter(const std::string& folder) : impl_(std::make_unique<Impl>()) {
  impl_->open(folder);
  impl_->add(0, 3, "brain.Event:2");
  impl_->flush();
}

EventWriter::~EventWriter() {
  try {
    impl_->flush();
  } catch (const Error&) {
    // A destructor has nobody to tell; callers who must know call flush() first.
  }
}

void EventWriter::scalar(const std::string& tag, double value, std::int64_t step) {
  std::string scalar;
  put_bytes(scalar, 1, tag);
  put_key(scalar, 2, kFixed32);
  put_fixed(scalar, std::bit_cast<std::uint32_t>(static_cast<float>(value)));
  std::string summary;
  put_bytes(summary, 1, scalar);
  impl_->add(step, 5, summary);
}

void EventWriter::flush() { impl_->flush(); }

}  // namespace moh::io
