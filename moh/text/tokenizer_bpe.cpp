#include "moh/text/tokenizer_bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <queue>

#include "moh/text/utf8.h"

namespace moh::text {
namespace {

constexpr std::size_t kShortWord = 48;  // symbols; below, looking through all pairs beats a heap
constexpr std::uint64_t kNoPair = ~std::uint64_t{0};

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

std::size_t pair_hash(std::uint64_t key) {
  key ^= key >> 29;
  key *= 0x9e3779b97f4a7c15u;
  return static_cast<std::size_t>(key ^ key >> 32);
}

std::string byte_token(unsigned byte) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  return std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15] + '>';
}

}  // namespace

Bpe::Bpe(std::vector<std::string> tokens, const std::vector<BpeMerge>& merges, const BpeOptions& options)
    : options_(options), tokens_(std::move(tokens)) {
  index_tokens();
  build_pairs(merges);
}

Bpe::Bpe(std::vector<std::string> tokens, const BpeOptions& options) : options_(options), tokens_(std::move(tokens)) {
  index_tokens();
  std::vector<BpeMerge> merges;
  for (std::size_t id = 0; id < tokens_.size(); ++id) {
    const std::string_view token = tokens_[id];
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      const std::int32_t left = id_of(token.substr(0, cut));
      if (left == kNone) continue;
      const std::int32_t right = id_of(token.substr(cut));
      if (right != kNone) merges.push_back({left, right, static_cast<std::int32_t>(id)});
    }
  }
  build_pairs(merges);
}

void Bpe::index_tokens() {
  ids_.reserve(tokens_.size());
  for (std::size_t id = 0; id < tokens_.size(); ++id) {
    if (!tokens_[id].empty()) ids_.emplace(tokens_[id], static_cast<std::int32_t>(id));
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = options_.byte_level      ? id_of(std::string(1, static_cast<char>(byte)))
                      : options_.byte_fallback ? id_of(byte_token(byte))
                                               : kNone;
  }
}

void Bpe::build_pairs(const std::vector<BpeMerge>& merges) {
  pairs_.resize(std::bit_ceil(2 * merges.size() + 1));
  const std::size_t mask = pairs_.size() - 1;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& merge = merges[rank];
    const std::uint64_t key = pair_key(merge.left, merge.right);
    std::size_t at = pair_hash(key) & mask;
    while (pairs_[at].pair != kNoPair && pairs_[at].pair != key) at = (at + 1) & mask;
    pairs_[at] = {key, static_cast<std::uint32_t>(rank), merge.result};  // a merge given twice: the later one counts
  }
}

std::int32_t Bpe::id_of(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? kNone : found->second;
}

const Bpe::Slot* Bpe::find_pair(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = pair_key(left, right);
  const std::size_t mask = pairs_.size() - 1;
  for (std::size_t at = pair_hash(key) & mask;; at = (at + 1) & mask) {
    if (pairs_[at].pair == key) return &pairs_[at];
    if (pairs_[at].pair == kNoPair) return nullptr;
  }
}

void Bpe::first_symbols(std::string_view word, std::vector<std::int32_t>& symbols) const {
  std::size_t open_unknown = 0;  // of the run of unknown symbols before this one
  const auto unknown = [&] {
    if (options_.unk_id != kNone && !(options_.fuse_unk && open_unknown > 0)) symbols.push_back(options_.unk_id);
    ++open_unknown;
  };
  if (options_.byte_level) {
    for (const char c : word) {
      const std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
      if (id == kNone) {
        unknown();
      } else {
        symbols.push_back(id);
        open_unknown = 0;
      }
    }
    return;
  }
  while (!word.empty()) {
    const std::string_view character = word.substr(0, std::max<std::size_t>(utf8_length(word), 1));
    word.remove_prefix(character.size());
    const auto has_byte = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] != kNone; };
    if (const std::int32_t id = id_of(character); id != kNone) {
      symbols.push_back(id);
      open_unknown = 0;
    } else if (std::all_of(character.begin(), character.end(), has_byte)) {
      for (const char c : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      open_unknown = 0;
    } else {
      unknown();
    }
  }
}

void Bpe::join_short(std::vector<std::int32_t>& symbols) const {
  constexpr std::uint32_t kNever = ~std::uint32_t{0};
  std::array<const Slot*, kShortWord> pairs;
  std::size_t count = symbols.size();
  for (std::size_t i = 0; i + 1 < count; ++i) pairs[i] = find_pair(symbols[i], symbols[i + 1]);
  while (count > 1) {
    std::size_t best = 0;
    std::uint32_t rank = kNever;
    for (std::size_t i = 0; i + 1 < count; ++i) {
      if (pairs[i] != nullptr && pairs[i]->rank < rank) {
        rank = pairs[i]->rank;
        best = i;
      }
    }
    if (rank == kNever) break;
    symbols[best] = pairs[best]->result;
    std::copy(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 2,
              symbols.begin() + static_cast<std::ptrdiff_t>(count),
              symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(pairs.begin() + best + 1, pairs.begin() + count - 1, pairs.begin() + best);
    --count;
    if (best > 0) pairs[best - 1] = find_pair(symbols[best - 1], symbols[best]);
    if (best + 1 < count) pairs[best] = find_pair(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

void Bpe::join_long(std::vector<std::int32_t>& symbols) const {
  struct Candidate {
    std::uint32_t rank, at;
    std::int32_t left, right, result;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  constexpr std::uint32_t kEnd = ~std::uint32_t{0};
  const auto size = static_cast<std::uint32_t>(symbols.size());
  std::vector<std::uint32_t> next(size), previous(size);
  for (std::uint32_t i = 0; i < size; ++i) {
    next[i] = i + 1 < size ? i + 1 : kEnd;
    previous[i] = i > 0 ? i - 1 : kEnd;
  }
  std::vector<Candidate> candidates;
  const auto candidate = [&](std::uint32_t at, const auto& add) {
    const std::int32_t left = symbols[at], right = symbols[next[at]];
    if (const Slot* slot = find_pair(left, right)) add(Candidate{slot->rank, at, left, right, slot->result});
  };
  for (std::uint32_t i = 0; i + 1 < size; ++i) candidate(i, [&](const Candidate& c) { candidates.push_back(c); });
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(), std::move(candidates));
  const auto push = [&](const Candidate& c) { queue.push(c); };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const std::uint32_t right = next[top.at];
    // A symbol that was joined to its left neighbour is kNone, so candidates that no longer stand there are seen.
    if (symbols[top.at] != top.left || right == kEnd || symbols[right] != top.right) continue;
    symbols[top.at] = top.result;
    symbols[right] = kNone;
    next[top.at] = next[right];
    if (next[right] != kEnd) previous[next[right]] = top.at;
    if (previous[top.at] != kEnd) candidate(previous[top.at], push);
    if (next[top.at] != kEnd) candidate(top.at, push);
  }
  std::erase(symbols, kNone);
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& ids) const {
  ids.clear();
  if (options_.ignore_merges) {
    if (const std::int32_t id = id_of(word); id != kNone) {
      ids.push_back(id);
      return;
    }
  }
  first_symbols(word, ids);
  if (ids.size() > kShortWord) {
    join_long(ids);
  } else {
    join_short(ids);
  }
}

// ---- WordCache

namespace {
constexpr std::size_t kFirstEntries = 1 << 8, kMaxEntries = 1 << 16;  // half of them are used at most
constexpr std::size_t kMaxWordBytes = 64;

std::uint32_t word_hash(std::string_view word) {
  std::uint64_t hash = word.size() * 0x9e3779b97f4a7c15u;
  std::size_t at = 0;
  const auto mix = [&](std::uint64_t value) {
    hash = (hash ^ value) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  };
  for (; at + 8 <= word.size(); at += 8) {
    std::uint64_t value;
    std::memcpy(&value, word.data() + at, 8);
    mix(value);
  }
  if (at < word.size()) {
    std::uint64_t value = 0;
    std::memcpy(&value, word.data() + at, word.size() - at);
    mix(value);
  }
  return static_cast<std::uint32_t>(hash ^ hash >> 29);
}
}  // namespace

WordCache::WordCache() : entries_(kFirstEntries) {}

void WordCache::make_room() {
  if (2 * used_ < entries_.size()) return;
  std::vector<Entry> old(std::min(4 * entries_.size(), kMaxEntries));
  old.swap(entries_);
  if (old.size() == kMaxEntries) {
    words_.clear();
    ids_.clear();
    used_ = 0;
    return;
  }
  for (const Entry& entry : old) {
    if (entry.word_size == 0) continue;
    std::size_t at = entry.hash & (entries_.size() - 1);
    while (entries_[at].word_size != 0) at = (at + 1) & (entries_.size() - 1);
    entries_[at] = entry;
  }
}

const std::int32_t* WordCache::find(std::string_view word, std::size_t& count) const {
  if (word.empty() || word.size() > kMaxWordBytes) return nullptr;
  const std::uint32_t hash = word_hash(word);
  const std::size_t mask = entries_.size() - 1;
  for (std::size_t at = hash & mask;; at = (at + 1) & mask) {
    const Entry& entry = entries_[at];
    if (entry.word_size == 0) return nullptr;
    if (entry.hash == hash && entry.word_size == word.size() &&
        std::memcmp(words_.data() + entry.word, word.data(), word.size()) == 0) {
      count = entry.count;
      return ids_.data() + entry.ids;
    }
  }
}

void WordCache::insert(std::string_view word, const std::int32_t* ids, std::size_t count) {
  if (word.empty() || word.size() > kMaxWordBytes) return;
  make_room();
  const std::uint32_t hash = word_hash(word);
  const std::size_t mask = entries_.size() - 1;
  std::size_t at = hash & mask;
  while (entries_[at].word_size != 0) at = (at + 1) & mask;
  entries_[at] = {hash, static_cast<std::uint32_t>(words_.size()), static_cast<std::uint32_t>(ids_.size()),
                  static_cast<std::uint16_t>(word.size()), static_cast<std::uint16_t>(count)};
  words_.insert(words_.end(), word.begin(), word.end());
  ids_.insert(ids_.end(), ids, ids + count);
  ++used_;
}

}  // namespace moh::text
