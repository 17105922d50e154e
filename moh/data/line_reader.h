// Lines of a file that may be compressed by gzip or Zstandard (told by its first bytes, not by its name), read piece by
// piece: files may be larger than memory.
#pragma once

#include <memory>
#include <string>

namespace moh::data {

class LineReader {
 public:
  explicit LineReader(const std::string& path);
  ~LineReader();
  // The next line without its end; false: there is none. Errors: a damaged archive, a line of more than 256 MB.
  bool next(std::string& line);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moh::data
