// Whole-file reading, crash-safe writing and memory maps on POSIX calls; every failure names the path and the reason.
#include "moh/io/files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "moh/base/error.h"

namespace moh::io {
namespace {

// A write of more than 2 GB is cut short by Linux anyway.
constexpr std::size_t kMaxChunk = std::size_t{1} << 30;

constexpr const char* kTemporaryMark = ".tmp";  // NAME.tmpPROCESS-NUMBER

[[noreturn]] void fail_errno(const std::string& path, const char* action, int code = errno) {
  fail("[files] ", path, ": cannot ", action, ": ", std::strerror(code));
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// O_NONBLOCK: opening a named pipe must give an error, not wait for a writer.
int open_regular(const std::string& path, struct stat& info) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail_errno(path, "open");
  Descriptor file(fd);
  if (::fstat(fd, &info) != 0) fail_errno(path, "stat");
  MOH_CHECK(S_ISREG(info.st_mode), "[files] ", path, ": expected a regular file, got ",
            S_ISDIR(info.st_mode) ? "a folder" : "a device or pipe");
  return file.release();
}

// Owns the temporary file until it has been renamed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path) {
    struct stat info;
    // Renaming over a device such as /dev/null would replace it.
    if (::stat(path.c_str(), &info) == 0) {
      MOH_CHECK(S_ISREG(info.st_mode), "[files] ", path, ": cannot write: it is ",
                S_ISDIR(info.st_mode) ? "a folder" : "a device or pipe");
    }
    static std::atomic<unsigned> counter{0};
    do {
      name_ = path + kTemporaryMark + std::to_string(::getpid()) + "-" + std::to_string(counter++);
      fd_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (fd_ < 0 && errno == EEXIST);
    if (fd_ < 0 && errno == ENOENT) {
      fail("[files] ", path, ": cannot write: the folder ", folder_of(path), " does not exist, create it first");
    }
    if (fd_ < 0) fail_errno(path, "write");
  }
  ~TemporaryFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!name_.empty()) ::unlink(name_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd_, bytes.data(), std::min(bytes.size(), kMaxChunk));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_errno(path_, "write");
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }

  void commit() {
    if (::fsync(fd_) != 0) fail_errno(path_, "fsync");
    if (::close(std::exchange(fd_, -1)) != 0) fail_errno(path_, "close");
    if (::rename(name_.c_str(), path_.c_str()) != 0) fail_errno(path_, "rename a temporary file to this name");
    name_.clear();
    fsync_folder(folder_of(path_));
  }

 private:
  std::string path_;
  std::string name_;
  int fd_ = -1;
};

}  // namespace

std::string read_file(const std::string& path, std::uint64_t max_bytes) {
  struct stat info;
  const Descriptor file(open_regular(path, info));
  const auto check_size = [&](std::uint64_t size) {
    MOH_CHECK(size <= max_bytes, "[files] ", path, ": larger than ", max_bytes, " bytes");
  };
  check_size(static_cast<std::uint64_t>(info.st_size));
  // One byte more than expected shows the end of the file; a file may also grow meanwhile, or claim size 0 as in /proc.
  std::string content(static_cast<std::size_t>(info.st_size) + 1, '\0');
  std::size_t size = 0;
  for (;;) {
    const ssize_t got = ::read(file.get(), content.data() + size, std::min(content.size() - size, kMaxChunk));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_errno(path, "read");
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
    check_size(size);
    if (size == content.size()) content.resize(2 * size + 4096);
  }
  content.resize(size);
  return content;
}

void write_file(const std::string& path, std::string_view content) {
  write_file(path, [&](const Sink& write) { write(std::as_bytes(std::span(content))); });
}

void write_file(const std::string& path, const std::function<void(const Sink& write)>& producer) {
  TemporaryFile file(path);
  producer([&](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
}

void remove_stale_temporaries(const std::string& folder) {
  std::error_code ignored;  // a folder that cannot be read has its error elsewhere
  std::vector<std::filesystem::path> stale;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const std::size_t mark = name.rfind(kTemporaryMark);
    int process = 0, number = 0, end = 0;
    if (mark == std::string::npos) continue;
    const std::string rest = name.substr(mark + std::strlen(kTemporaryMark));
    if (std::sscanf(rest.c_str(), "%d-%d%n", &process, &number, &end) != 2) continue;
    if (static_cast<std::size_t>(end) != rest.size() || process <= 0) continue;
    if (::kill(process, 0) != 0 && errno == ESRCH) stale.push_back(entry.path());
  }
  for (const auto& path : stale) std::filesystem::remove(path, ignored);
}

// A file that another process cuts short while it is mapped ends this one with SIGBUS; files written by write_file are
// replaced whole, so a mapping keeps its old content.
MappedFile::MappedFile(const std::string& path) {
  struct stat info;
  const Descriptor file(open_regular(path, info));
  if (info.st_size == 0) return;
  const std::size_t size = static_cast<std::size_t>(info.st_size);
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.get(), 0);
  if (address == MAP_FAILED) fail_errno(path, "map");
  data_ = static_cast<const std::byte*>(address);
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void drop_pages(std::span<const std::byte> part_of_mapping) {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(part_of_mapping.data());
  const std::uintptr_t first = (begin + page - 1) / page * page, last = (begin + part_of_mapping.size()) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void fsync_folder(const std::string& path) {
  const Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0) fail_errno(path, "open");
  // Some network file systems cannot sync a folder and say so with EINVAL.
  if (::fsync(folder.get()) != 0 && errno != EINVAL) fail_errno(path, "fsync");
}

}  // namespace moh::io
