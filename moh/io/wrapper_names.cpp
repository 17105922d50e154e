#include "moh/io/wrapper_names.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace moh::io {
namespace {

// "a._orig_mod.b" becomes "a.b"; the last part of a name stays.
std::string without_parts(std::string_view name) {
  constexpr std::array<std::string_view, 3> kParts = {"_orig_mod", "_fsdp_wrapped_module",
                                                      "_checkpoint_wrapped_module"};
  std::string kept;
  for (std::size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.')) {
    const std::string_view part = name.substr(0, dot);
    if (std::find(kParts.begin(), kParts.end(), part) == kParts.end()) kept.append(name.substr(0, dot + 1));
    name.remove_prefix(dot + 1);
  }
  return kept.append(name);
}

bool all_begin(const std::vector<std::string>& names, std::string_view prefix) {
  return std::all_of(names.begin(), names.end(), [&](const std::string& name) { return name.starts_with(prefix); });
}

bool is_llama_name(const std::string& name) {
  return name.starts_with("model.layers.") || name.starts_with("model.embed_tokens.");
}

}  // namespace

void strip_wrappers(std::vector<std::string>& names) {
  if (names.empty()) return;
  for (std::string& name : names) name = without_parts(name);
  constexpr int kDeepest = 8;  // real nestings have two or three
  for (int depth = 0; depth < kDeepest; ++depth) {
    std::string_view prefix = "module.";
    if (!all_begin(names, prefix)) {
      prefix = "model.";
      if (!all_begin(names, prefix) || std::any_of(names.begin(), names.end(), is_llama_name)) return;
    }
    for (std::string& name : names) name.erase(0, prefix.size());
  }
}

}  // namespace moh::io
