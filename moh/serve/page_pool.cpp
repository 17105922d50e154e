#include "moh/serve/page_pool.h"

#include <algorithm>

#include "moh/base/error.h"

namespace moh::serve {

PagePool::PagePool(std::int64_t pages)
    : users_(static_cast<std::size_t>(pages), 0),
      known_at_(static_cast<std::size_t>(pages), known_.end()),
      children_(static_cast<std::size_t>(pages), 0) {
  for (std::int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<std::int32_t>(page));
}

std::int64_t PagePool::used() const {
  return size() - static_cast<std::int64_t>(free_.size()) - static_cast<std::int64_t>(unused_.size());
}

void PagePool::forget(std::int32_t page) {
  const auto at = known_at_[page];
  if (at->first.parent >= 0) --children_[at->first.parent];
  known_.erase(at);
  known_at_[page] = known_.end();
}

std::int32_t PagePool::take() {
  std::int32_t page = -1;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    // A page whose continuation is still kept would leave it unreachable; users hold their pages' parents, so that an
    // unused page without unused children exists if there is any unused one.
    const auto found = std::find_if(unused_.begin(), unused_.end(), [&](std::int32_t p) { return children_[p] == 0; });
    if (found == unused_.end()) return -1;
    page = *found;
    unused_.erase(found);
    forget(page);
  }
  users_[page] = 1;
  return page;
}

void PagePool::share(std::int32_t page) { ++users_[page]; }

void PagePool::release(std::int32_t page) {
  MOH_CHECK(users_[page] > 0, "[serve] page ", page, " was released twice");
  if (--users_[page] > 0) return;
  if (known_at_[page] == known_.end()) {
    free_.push_back(page);
  } else {
    unused_.push_back(page);
  }
}

std::int32_t PagePool::keep(std::int32_t parent, std::int64_t variant, const std::vector<std::int64_t>& tokens,
                            std::int32_t page) {
  const auto [at, is_new] = known_.emplace(Key{parent, variant, tokens}, page);
  if (is_new) {
    known_at_[page] = at;
    if (parent >= 0) ++children_[parent];
    return page;
  }
  const std::int32_t there = at->second;
  if (users_[there] == 0) unused_.remove(there);
  ++users_[there];
  release(page);
  return there;
}

std::int32_t PagePool::find(std::int32_t parent, std::int64_t variant, const std::vector<std::int64_t>& tokens) {
  const auto at = known_.find(Key{parent, variant, tokens});
  if (at == known_.end()) return -1;
  const std::int32_t page = at->second;
  if (users_[page] == 0) unused_.remove(page);
  ++users_[page];
  return page;
}

}  // namespace moh::serve
