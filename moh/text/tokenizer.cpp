// Raw bytes as a tokenizer, and the choice of a tokenizer for a model folder.
#include "moh/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "moh/base/error.h"
#include "moh/base/fields.h"
#include "moh/io/files.h"
#include "moh/io/gguf.h"
#include "moh/text/tokenizer_gguf.h"
#include "moh/text/tokenizer_pipeline.h"
#include "moh/text/tokenizer_sentencepiece.h"

namespace moh::text {
namespace {

constexpr std::uint64_t kMaxModelBytes = std::uint64_t{1} << 28;
constexpr std::uint64_t kMaxJsonBytes = std::uint64_t{1} << 26;  // the largest in use have half of it
constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{1} << 24;

class BytesTokenizer : public Tokenizer {
 public:
  std::vector<std::int64_t> encode(std::string_view text, bool) const override {
    std::vector<std::int64_t> ids(text.size());
    std::transform(text.begin(), text.end(), ids.begin(), [](char c) { return static_cast<unsigned char>(c); });
    return ids;
  }
  std::string decode(const std::vector<std::int64_t>& ids) const override {
    std::string text;
    for (const std::int64_t id : ids) text += piece_bytes(id);
    return text;
  }
  std::string piece_bytes(std::int64_t id) const override {
    MOH_CHECK(id >= 0, "[tokenizer] id ", id, " is less than 0");
    return id < 256 ? std::string(1, static_cast<char>(id)) : "";
  }
  std::int64_t vocab_size() const override { return 256; }
  std::int64_t bos_id() const override { return -1; }
  std::int64_t eos_id() const override { return -1; }
  bool adds_bos() const override { return false; }
  bool strips_leading_space() const override { return false; }
  std::string kind() const override { return "bytes"; }
};

bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

std::shared_ptr<const Tokenizer> pipeline(TokenizerParts parts, const TokenizerConfig& config) {
  apply_tokenizer_config(config, parts);
  return std::make_shared<PipelineTokenizer>(std::move(parts));
}

}  // namespace

std::shared_ptr<const Tokenizer> bytes_tokenizer() { return std::make_shared<BytesTokenizer>(); }

std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& folder) {
  std::error_code error;
  const std::string place = "[tokenizer] " + folder + ": ";
  // A tokenizer beside a GGUF file goes before the one within it.
  if (tokenizer_files(folder).empty()) {
    if (const auto gguf = io::find_gguf(folder)) {
      return std::make_shared<PipelineTokenizer>(parts_of_gguf(io::GgufFile(*gguf)));
    }
  }
  MOH_CHECK(std::filesystem::is_directory(folder, error), place, "expected a model folder");
  const std::vector<std::string> files = tokenizer_files(folder);
  const auto has = [&](const char* name) { return std::find(files.begin(), files.end(), name) != files.end(); };
  const std::string config_file = folder + "/tokenizer_config.json";
  TokenizerConfig config;
  if (has("tokenizer_config.json")) {
    config = read_tokenizer_config(io::read_file(config_file, kMaxConfigBytes), config_file);
  }
  if (has("added_tokens.json")) {
    const std::string file = folder + "/added_tokens.json";
    read_added_tokens_json(io::read_file(file, kMaxConfigBytes), file, config);
  }

  if (has("tokenizer.json")) {
    const std::string file = folder + "/tokenizer.json";
    const Json root = parse_json(io::read_file(file, kMaxJsonBytes), file, kTokenizerJsonDepth);
    // Other models than BPE (Unigram) are SentencePiece's too, whose own file says the same.
    if (is_bpe(root) || !has("tokenizer.model")) return pipeline(parts_of_tokenizer_json(root, file), config);
  }
  if (has("tokenizer.model")) {
    const std::string file = folder + "/tokenizer.model";
    const std::string model = io::read_file(file, kMaxModelBytes);
    if (is_tiktoken(model)) return pipeline(parts_of_tiktoken(model, file), config);
    return sentencepiece_tokenizer(model, file,
                                   {.adds_bos = config.add_bos_token,
                                    .legacy = config.legacy,
                                    .add_prefix_space = config.add_prefix_space,
                                    .added = config.added});
  }
  if (has("vocab.json") && has("merges.txt")) {
    const std::string file = folder + "/vocab.json";
    return pipeline(parts_of_vocab_and_merges(io::read_file(file, kMaxJsonBytes),
                                              io::read_file(folder + "/merges.txt", kMaxJsonBytes), config, file),
                    config);
  }
  MOH_CHECK(files.empty() || (files.size() == 1 && has("tokenizer_config.json")), place,
            "no tokenizer that can be read (", files.empty() ? "" : files.front(),
            "), expected tokenizer.json, tokenizer.model, or vocab.json and merges.txt");
  return bytes_tokenizer();
}

std::vector<std::string> tokenizer_files(const std::string& folder) {
  constexpr std::array<const char*, 9> kNames = {"tokenizer.model",
                                                 "tokenizer.json",
                                                 "tekken.json",
                                                 "vocab.json",
                                                 "merges.txt",
                                                 "vocab.txt",
                                                 "added_tokens.json",
                                                 "tokenizer_config.json",
                                                 "special_tokens_map.json"};
  std::vector<std::string> found;
  for (const char* name : kNames)
    if (exists(folder + "/" + name)) found.emplace_back(name);
  return found;
}

}  // namespace moh::text
