#include "cli/token_mix.h"

#include <filesystem>

#include "cli/config_file.h"
#include "moh/base/error.h"

namespace moh::cli {
namespace {

namespace fs = std::filesystem;

struct Source {
  std::string name, data, valid;
  double weight = 0;

  template <class V>
  void fields(V& visit) {
    visit("name", name, "");
    visit("data", data, "");
    visit("valid", valid, "");
    visit("weight", weight, "");
  }
};

}  // namespace

data::TokenMix open_token_mix(const std::string& path, const text::Tokenizer* tokenizer, std::int64_t vocab_size) {
  if (!path.ends_with(".toml")) return data::TokenStream::open(path, tokenizer, vocab_size);
  MOH_CHECK(fs::exists(path), "[data] ", path, " does not exist");
  const Json mix = read_any_toml(path);
  for (const auto& item : mix.items()) {
    MOH_CHECK(item.key() == "source" && item.value().is_array(), "[data] ", path,
              ": a mix consists of [[source]] parts; ", "unknown `", item.key(), "`");
  }
  MOH_CHECK(mix.contains("source"), "[data] ", path, " has no [[source]]");
  const fs::path folder = fs::path(path).parent_path();
  std::vector<data::TokenSource> sources;
  for (const Json& each : mix["source"]) {
    Source source;
    from_json(each, source, path + ": source " + std::to_string(sources.size() + 1));
    MOH_CHECK(!source.data.empty(), "[data] ", path, ": source ", sources.size() + 1, " has no `data`");
    if (source.name.empty()) source.name = fs::path(source.data).filename().string();
    data::TokenSource opened{source.name, data::TokenStream::open(folder / source.data, tokenizer, vocab_size),
                             source.weight};
    if (!source.valid.empty()) opened.valid = data::TokenStream::open(folder / source.valid, tokenizer, vocab_size);
    sources.push_back(std::move(opened));
  }
  return data::TokenMix(std::move(sources));
}

}  // namespace moh::cli
