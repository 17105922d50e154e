// One array `arr_0` in an uncompressed .npz, written piece by piece: sampled pictures as the ADM evaluator reads them.
//
// Until it is finished the file is called PATH.part, and PATH.part.json beside it says what it is the beginning of. A
// writer that is opened again with the same words goes on after the last whole row.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moh/base/fields.h"

namespace moh::io {

class NpzWriter {
 public:
  // `shape` is that of the whole array, uint8; `what` describes the content. Errors: PATH is there already, PATH.part
  // is the beginning of something else.
  NpzWriter(std::string path, std::vector<std::int64_t> shape, Json what);
  ~NpzWriter();
  NpzWriter(const NpzWriter&) = delete;
  NpzWriter& operator=(const NpzWriter&) = delete;

  std::int64_t rows_done() const { return rows_; }
  // Whole rows; they are on the disk when this returns.
  void append(std::span<const std::byte> rows);
  // Adds the table of contents and gives the file its name. Error: rows are missing.
  void finish();

 private:
  void write_at(std::uint64_t offset, std::string_view bytes);
  std::uint32_t checksum() const;  // of the entry's content, read back

  std::string path_, head_;  // head_: local zip header and npy header
  std::size_t zip_header_ = 0;
  std::vector<std::int64_t> shape_;
  std::uint64_t row_bytes_ = 0;
  std::int64_t rows_ = 0;
  int file_ = -1;
};

}  // namespace moh::io
