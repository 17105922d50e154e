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

// Removes the temporary files that write_file calls of processes that no longer live left in `folder`.
void remove_stale_temporaries(const std::string& folder);

// A private memory map of a whole file; empty files map to an empty span. Whoever casts const away may write: the pages
// concerned are copied first and the file never changes.
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

// Gives the memory of a mapping's pages back; they are read from the file again if need be, and what was written to
// them is lost.
void drop_pages(std::span<const std::byte> part_of_mapping);

void fsync_folder(const std::string& path);

}  // namespace moh::io
