// Whole-file reading and crash-safe writing.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace moh::io {

// Error if the file is missing, not a regular file, or larger than max_bytes.
std::string read_file(const std::string& path, std::uint64_t max_bytes = std::uint64_t{1} << 32);

// Writes under a temporary name in the same folder, fsyncs, renames over `path`, fsyncs the folder: after a crash the
// old or the new content is there, whole. On any failure (disk full, read-only) the temporary file is removed and Error
// says which path and why.
void write_file(const std::string& path, std::string_view content);

// The same for content produced piece by piece; `write` may be called any number of times.
using Sink = std::function<void(std::span<const std::byte>)>;
void write_file(const std::string& path, const std::function<void(const Sink& write)>& producer);

// A read-only memory map of a whole file; empty files map to an empty span.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

void fsync_folder(const std::string& path);

}  // namespace moh::io
