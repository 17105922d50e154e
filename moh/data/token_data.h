// Token streams from files: .npy/.bin of uint16 or uint32 ids (memory-mapped), text files or folders of them
// (tokenized).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moh/data/permutation.h"
#include "moh/io/files.h"
#include "moh/text/tokenizer.h"

namespace moh::data {

// One flat stream of token ids.
class TokenStream {
 public:
  // PATH.npy (one dimension), PATH.bin (uint16 ids; uint32 where vocab_size > 65536), a text file, or a folder whose
  // *.txt files are joined in order of their names, or a folder that tokenize_documents made. Text needs `tokenizer`; a
  // BOS is put before every text file if the tokenizer adds one. Errors: missing or empty data, an id outside [0,
  // vocab_size), named with its position.
  static TokenStream open(const std::string& path, const text::Tokenizer* tokenizer, std::int64_t vocab_size);

  std::int64_t size() const { return size_; }
  std::int64_t operator[](std::int64_t i) const { return wide_ ? wide_[i] : narrow_[i]; }
  // ids [count, length + 1] int64: windows starting at the given positions.
  at::Tensor windows(const std::vector<std::int64_t>& starts, std::int64_t length) const;
  // Whether it is known where documents begin, and then for the same windows the number of each id's document, counted
  // from the window's first: [count, length + 1] int64.
  bool has_documents() const { return !documents_.empty(); }
  at::Tensor documents(const std::vector<std::int64_t>& starts, std::int64_t length) const;

 private:
  void own(std::vector<std::uint32_t> ids);
  void open_folder(const std::string& path, std::int64_t vocab_size);

  std::shared_ptr<io::MappedFile> map_, documents_map_;
  std::span<const std::uint64_t> documents_;  // first id of each
  std::shared_ptr<const std::vector<std::uint32_t>> owned_;
  const std::uint16_t* narrow_ = nullptr;
  const std::uint32_t* wide_ = nullptr;
  std::int64_t size_ = 0;
};

// The order in which training reads a stream: windows of `sequence` + 1 tokens, every window once an epoch, shuffled
// anew each epoch from the seed, with the epoch's first window at a random offset. The position is one number, so a
// resumed run reads on exactly where it stopped.
//
// Up to a million windows the order is a list, as it always was; above, it is computed place by place (permutation.h),
// so that any number of tokens costs the same memory and no time to begin.
class WindowSampler {
 public:
  WindowSampler(std::int64_t stream_size, std::int64_t sequence, std::uint64_t seed);
  // Starts of windows number position .. position + count - 1 since the beginning of training.
  std::vector<std::int64_t> starts(std::int64_t position, std::int64_t count);

 private:
  void shuffle(std::int64_t epoch);
  std::int64_t stream_size_, sequence_, per_epoch_, epoch_ = -1, offset_ = 0;
  std::uint64_t seed_;
  std::vector<std::int64_t> order_;  // of up to a million windows, else
  std::optional<Permutation> permutation_;
};

}  // namespace moh::data
