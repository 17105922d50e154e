// Byte-pair encoding of one word: symbols are joined, the pair of the lowest rank first, the leftmost of equal ones.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moh::text {

// What a word is made of at first, and what happens to a symbol without a token.
struct BpeOptions {
  bool byte_level = true;      // symbols are bytes; else characters
  bool byte_fallback = false;  // characters without a token become <0xNN> tokens
  bool ignore_merges = false;  // a word that is a token is that token
  bool fuse_unk = false;       // neighbouring unknown symbols become one unknown token
  std::int32_t unk_id = -1;    // -1: unknown symbols vanish, as in PyPI's tokenizers
};

struct BpeMerge {
  std::int32_t left, right, result;
};

class Bpe {
 public:
  static constexpr std::int32_t kNone = -1;

  // `tokens[id]` is the token's text in raw bytes, "" for an id that no word can give. Merges in order of rank.
  Bpe(std::vector<std::string> tokens, const std::vector<BpeMerge>& merges, const BpeOptions& options);
  // Ranks alone: two tokens join where their bytes together are a token; the lower id first. (tiktoken)
  Bpe(std::vector<std::string> tokens, const BpeOptions& options);

  void encode(std::string_view word, std::vector<std::int32_t>& ids) const;

  const BpeOptions& options() const { return options_; }
  std::int32_t id_of(std::string_view token) const;
  const std::vector<std::string>& tokens() const { return tokens_; }

 private:
  struct Slot {
    std::uint64_t pair = ~std::uint64_t{0};
    std::uint32_t rank = 0;
    std::int32_t result = kNone;
  };
  void index_tokens();
  void build_pairs(const std::vector<BpeMerge>& merges);
  const Slot* find_pair(std::int32_t left, std::int32_t right) const;
  void first_symbols(std::string_view word, std::vector<std::int32_t>& symbols) const;
  void join_short(std::vector<std::int32_t>& symbols) const;
  void join_long(std::vector<std::int32_t>& symbols) const;

  BpeOptions options_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, std::int32_t> ids_;  // views of tokens_
  std::array<std::int32_t, 256> byte_ids_;                  // of the byte, or of its <0xNN> token
  std::vector<Slot> pairs_;                                 // open addressing, a power of two of slots
};

// Words already seen and their ids, of one thread. It grows; full, it starts anew.
class WordCache {
 public:
  WordCache();
  // The ids of the word, or nullptr with `count` untouched.
  const std::int32_t* find(std::string_view word, std::size_t& count) const;
  void insert(std::string_view word, const std::int32_t* ids, std::size_t count);

 private:
  struct Entry {
    std::uint32_t hash = 0, word = 0, ids = 0;
    std::uint16_t word_size = 0, count = 0;  // word_size 0: free
  };
  void make_room();
  std::vector<Entry> entries_;
  std::vector<char> words_;
  std::vector<std::int32_t> ids_;
  std::size_t used_ = 0;
};

}  // namespace moh::text
