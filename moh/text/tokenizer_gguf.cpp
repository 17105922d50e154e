// The tokenizer that a GGUF file holds, told as the tokenizer.json that it was made of.
#include "moh/text/tokenizer_gguf.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <unordered_map>

#include "moh/io/files.h"
#include "moh/io/name_text.h"
#include "moh/text/utf8.h"

namespace moh::text {
namespace {

enum TokenType : std::int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

Json split(const char* pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}
Json sequence(const char* name, Json steps) { return {{"type", "Sequence"}, {name, std::move(steps)}}; }
// With every key, as PyPI's tokenizers asks for them.
const Json kBytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};

// How the text is cut before byte-pair encoding, by the name that llama.cpp gives each way.
Json pre_tokenizer(const std::string& name, const std::string& place) {
  const auto one_of = [&](std::initializer_list<const char*> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (one_of({"gpt-2", "gpt2", "olmo"})) return sequence("pretokenizers", {split(kGpt2Pattern), kBytes});
  if (one_of({"smollm", "refact", "starcoder"}))
    return sequence("pretokenizers", {split("\\p{N}"), split(kGpt2Pattern), kBytes});
  if (one_of({"llama-bpe", "llama3", "llama-v3", "dbrx"}))
    return sequence("pretokenizers", {split(kLlama3Pattern), kBytes});
  if (one_of({"qwen2"})) return sequence("pretokenizers", {split(kQwen2Pattern), kBytes});
  if (one_of({"default"})) {
    return sequence("pretokenizers", {split("[\\p{P}\\$\\+<=>\\^~\\|]+"), split(kGpt2Pattern), split("\\p{N}+"),
                                      split("[0-9][0-9][0-9]"), kBytes});
  }
  fail(
      place, "the pre-tokenizer ", io::name_text(name),
      " (tokenizer.ggml.pre) is not supported, expected gpt-2, olmo, smollm, refact, starcoder, llama-bpe, dbrx, qwen2 or default");
}

// SentencePiece joins the two neighbours whose joint piece has the best score: as merges, all pairs of pieces that make
// one, those of the best score first.
Json merges_by_score(const std::vector<std::string_view>& tokens, const std::vector<double>& scores,
                     const std::vector<std::int64_t>& types) {
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t id = 0; id < tokens.size(); ++id)
    if (types[id] == kNormal || types[id] == kUserDefined) ids.emplace(tokens[id], id);
  struct Merge {
    std::size_t left, right, result;
  };
  std::vector<Merge> merges;
  for (const auto& [token, id] : ids) {
    for (std::size_t cut = utf8_length(token); cut > 0 && cut < token.size();) {
      const auto left = ids.find(token.substr(0, cut)), right = ids.find(token.substr(cut));
      if (left != ids.end() && right != ids.end()) merges.push_back({left->second, right->second, id});
      const std::size_t step = utf8_length(token.substr(cut));
      if (step == 0) break;
      cut += step;
    }
  }
  std::sort(merges.begin(), merges.end(), [&](const Merge& a, const Merge& b) {
    if (scores[a.result] != scores[b.result]) return scores[a.result] > scores[b.result];
    return std::tie(a.result, a.left, a.right) < std::tie(b.result, b.left, b.right);
  });
  Json list = Json::array();
  for (const Merge& merge : merges) list.push_back({std::string(tokens[merge.left]), std::string(tokens[merge.right])});
  return list;
}

// What a GGUF file says of its tokenizer: a tokenizer.json, and whether a text begins with BOS.
struct Described {
  Json root;
  bool adds_bos;
};

Described described(const io::GgufFile& file) {
  constexpr std::size_t kMaxTokenBytes = 1024;  // splits are tried at each character
  const std::string place = "[tokenizer] " + file.path() + ": ";
  const std::string model(file.text("tokenizer.ggml.model").value_or(""));
  MOH_CHECK(model == "gpt2" || model == "llama", place, "the tokenizer ", io::name_text(model),
            " (tokenizer.ggml.model) is not supported, expected gpt2 or llama");
  const bool is_spm = model == "llama";
  const std::vector<std::string_view> tokens = file.texts("tokenizer.ggml.tokens");
  MOH_CHECK(!tokens.empty(), place, "tokenizer.ggml.tokens is missing");
  std::vector<std::int64_t> types = file.integers("tokenizer.ggml.token_type");
  if (types.empty()) types.assign(tokens.size(), kNormal);
  MOH_CHECK(types.size() == tokens.size(), place, "tokenizer.ggml.token_type has ", types.size(), " entries, expected ",
            tokens.size());

  Json root = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"post_processor", nullptr}};
  Json added = Json::array(), vocab = Json::object();
  Json bpe = {{"type", "BPE"},
              {"dropout", nullptr},
              {"unk_token", nullptr},
              {"continuing_subword_prefix", nullptr},
              {"end_of_word_suffix", nullptr},
              {"byte_fallback", is_spm},
              {"fuse_unk", is_spm},
              {"ignore_merges", false}};
  // Added one after the other: the map itself would look through all that it has for each.
  std::vector<Json::object_t::value_type>& entries = vocab.get_ref<Json::object_t&>();
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    MOH_CHECK(tokens[id].size() <= kMaxTokenBytes && is_utf8(tokens[id]), place, "token ", id,
              " is not a text of at most ", kMaxTokenBytes, " bytes");
    entries.emplace_back(std::string(tokens[id]), static_cast<std::uint64_t>(id));
    if (types[id] == kUnknown && is_spm) bpe["unk_token"] = tokens[id];
    if (types[id] == kControl || types[id] == kUserDefined || types[id] == kUnknown) {
      added.push_back({{"id", static_cast<std::uint64_t>(id)},
                       {"content", tokens[id]},
                       {"special", types[id] != kUserDefined},
                       {"normalized", false},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false}});
    }
  }
  bool adds_bos = is_spm;
  if (is_spm) {
    std::vector<double> scores = file.numbers("tokenizer.ggml.scores");
    MOH_CHECK(scores.size() == tokens.size(), place, "tokenizer.ggml.scores has ", scores.size(), " entries, expected ",
              tokens.size());
    bpe["merges"] = merges_by_score(tokens, scores, types);
    const bool prefix = file.flag("tokenizer.ggml.add_space_prefix").value_or(true);
    Json normalizers = Json::array(), decoders = Json::array();
    if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", "\u2581"}});
    normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}});
    decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}});
    decoders.push_back({{"type", "ByteFallback"}});
    decoders.push_back({{"type", "Fuse"}});
    if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1u}, {"stop", 0u}});
    root["normalizer"] = sequence("normalizers", std::move(normalizers));
    root["decoder"] = sequence("decoders", std::move(decoders));
  } else {
    const std::string pre(file.text("tokenizer.ggml.pre").value_or("default"));
    root["pre_tokenizer"] = pre_tokenizer(pre, place);
    root["decoder"] = kBytes;
    if (pre == "qwen2") root["normalizer"] = {{"type", "NFC"}};
    const bool is_llama3 = pre.starts_with("llama");
    bpe["ignore_merges"] = is_llama3;
    adds_bos = is_llama3;
    bpe["merges"] = Json::array();
    for (const std::string_view merge : file.texts("tokenizer.ggml.merges")) {
      MOH_CHECK(is_utf8(merge), place, "a merge is not UTF-8");
      bpe["merges"].push_back(merge);
    }
  }
  bpe["vocab"] = std::move(vocab);
  root["model"] = std::move(bpe);
  root["added_tokens"] = std::move(added);
  return {std::move(root), file.flag("tokenizer.ggml.add_bos_token").value_or(adds_bos)};
}

// -1: none.
std::int64_t token_id(const io::GgufFile& file, const char* key, std::size_t tokens) {
  const std::int64_t id = file.integer(key).value_or(-1);
  MOH_CHECK(id < static_cast<std::int64_t>(tokens), "[tokenizer] ", file.path(), ": ", key, " is ", id,
            ", expected less than ", tokens);
  return std::max<std::int64_t>(id, -1);
}

}  // namespace

TokenizerParts parts_of_gguf(const io::GgufFile& file) {
  const Described tokenizer = described(file);
  const std::size_t tokens = tokenizer.root["model"]["vocab"].size();
  TokenizerParts parts = parts_of_tokenizer_json(tokenizer.root, file.path());
  parts.kind = "gguf";
  parts.bos_id = token_id(file, "tokenizer.ggml.bos_token_id", tokens);
  parts.eos_id = token_id(file, "tokenizer.ggml.eos_token_id", tokens);
  parts.adds_bos = tokenizer.adds_bos && parts.bos_id >= 0;
  return parts;
}

void write_gguf_tokenizer(const io::GgufFile& file, const std::string& folder) {
  if (!file.text("tokenizer.ggml.model")) return;
  const Described tokenizer = described(file);
  const std::vector<std::string_view> tokens = file.texts("tokenizer.ggml.tokens");
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"add_bos_token", tokenizer.adds_bos}};
  constexpr std::pair<const char*, const char*> kTokens[] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                                                             {"eos_token", "tokenizer.ggml.eos_token_id"},
                                                             {"unk_token", "tokenizer.ggml.unknown_token_id"},
                                                             {"pad_token", "tokenizer.ggml.padding_token_id"}};
  for (const auto& [name, key] : kTokens) {
    const std::int64_t id = token_id(file, key, tokens.size());
    if (id >= 0) config[name] = tokens[static_cast<std::size_t>(id)];
  }
  if (const auto chat = file.text("tokenizer.chat_template")) config["chat_template"] = *chat;
  io::write_file(folder + "/tokenizer.json", tokenizer.root.dump() + "\n");
  io::write_file(folder + "/tokenizer_config.json", config.dump(2) + "\n");
}

}  // namespace moh::text
