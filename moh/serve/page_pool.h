// Who holds which page of the KV cache. A page holds the keys and values of kPageTokens tokens in every layer. Pages of
// prompts are kept under what they hold, so that a later prompt that begins alike need not be computed again; those
// that nobody uses are given away, the longest unused first, when free ones run out.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <vector>

namespace moh::serve {

constexpr std::int64_t kPageTokens = 64;

class PagePool {
 public:
  explicit PagePool(std::int64_t pages);

  // A page of one's own, or -1: none is free.
  std::int32_t take();
  // A user more of a page that is used already.
  void share(std::int32_t page);
  void release(std::int32_t page);

  // `page` holds `tokens` (kPageTokens of them), behind the page `parent` (-1: it is the first), computed with the
  // heads that `variant` stands for. Returns the page that stands for it from now on: another one if it was there
  // already.
  std::int32_t keep(std::int32_t parent, std::int64_t variant, const std::vector<std::int64_t>& tokens,
                    std::int32_t page);
  // The page that holds just that, with one user more, or -1.
  std::int32_t find(std::int32_t parent, std::int64_t variant, const std::vector<std::int64_t>& tokens);

  std::int64_t size() const { return static_cast<std::int64_t>(users_.size()); }
  std::int64_t used() const;                                                       // pages that somebody uses
  std::int64_t kept() const { return static_cast<std::int64_t>(unused_.size()); }  // unused, but findable

 private:
  struct Key {
    std::int32_t parent;
    std::int64_t variant;
    std::vector<std::int64_t> tokens;
    auto operator<=>(const Key&) const = default;
  };
  using Known = std::map<Key, std::int32_t>;
  void forget(std::int32_t page);

  std::vector<std::int64_t> users_;
  std::vector<Known::iterator> known_at_;  // end(): not findable
  std::vector<std::int64_t> children_;     // findable pages whose parent this is
  Known known_;
  std::vector<std::int32_t> free_;
  std::list<std::int32_t> unused_;  // findable without users, the longest unused first
};

}  // namespace moh::serve
