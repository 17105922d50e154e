// Reads tokenizer.json, the file of PyPI's tokenizers: byte-pair encoding as GPT-2, Llama 3, Qwen and SmolLM have it
// (on bytes), and as Llama 2, Mistral and Gemma have it (on characters, spaces written U+2581). What cannot be followed
// to the letter is an Error that names it.
#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <unordered_map>

#include "moh/base/fields.h"
#include "moh/io/name_text.h"
#include "moh/text/tokenizer_pipeline.h"
#include "moh/text/utf8.h"

namespace moh::text {

const char* const kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char* const kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

// Members of a JSON object, which may be null or absent.
const Json* member(const Json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

constexpr std::size_t kMaxSteps = 64;  // normalizers or pre-tokenizers; real files have three

class Reader {
 public:
  explicit Reader(std::string place) : place_(std::move(place)) {}
  const std::string& place() const { return place_; }

  template <class... Args>
  void check(bool condition, const Args&... args) const {
    if (!condition) fail(io::one_line(detail::concat(place_, args...)));
  }
  std::string string(const Json& object, const char* name) const {
    const Json* value = member(object, name);
    check(value != nullptr && value->is_string(), "`", name, "` must be a string");
    return value->get<std::string>();
  }
  std::string string_or(const Json& object, const char* name, const char* fallback) const {
    return member(object, name) == nullptr ? fallback : string(object, name);
  }
  bool flag(const Json& object, const char* name, bool fallback) const {
    const Json* value = member(object, name);
    if (value == nullptr) return fallback;
    check(value->is_boolean(), "`", name, "` must be true or false");
    return value->get<bool>();
  }
  std::int32_t id(const Json& value, std::string_view token, std::size_t limit) const {
    const bool fits = value.is_number_unsigned() && value.get<std::uint64_t>() < limit;
    check(fits, "token `", token, "` has the id ", value.dump().substr(0, 40), ", expected a number below ", limit);
    return value.get<std::int32_t>();
  }
  const Json::array_t& array(const Json& object, const char* name) const {
    const Json* value = member(object, name);
    check(value != nullptr && value->is_array(), "`", name, "` must be a list");
    return value->get_ref<const Json::array_t&>();
  }

 private:
  std::string place_;
};

// Ids may have gaps, but not such that a short file makes a long table.
std::size_t id_limit(std::size_t tokens) { return 2 * tokens + (1 << 16); }
constexpr std::int32_t kMaxAddedId = 1 << 19;  // of files that do not know the vocabulary

// ---- The alphabet of byte-level tokens: each byte is shown as a printable character.

class ByteAlphabet {
 public:
  ByteAlphabet() {
    bytes_.fill(-1);
    std::uint32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      bytes_[printable ? static_cast<std::uint32_t>(byte) : next++] = byte;
    }
  }
  // The bytes that a token stands for; nothing if it has another character.
  std::optional<std::string> bytes_of(std::string_view token) const {
    std::string bytes;
    while (!token.empty()) {
      const std::size_t size = utf8_length(token);
      if (size == 0) return std::nullopt;
      const std::uint32_t c = utf8_code_point(token.substr(0, size));
      if (c >= bytes_.size() || bytes_[c] < 0) return std::nullopt;
      bytes += static_cast<char>(bytes_[c]);
      token.remove_prefix(size);
    }
    return bytes;
  }

 private:
  std::array<int, 256 + 68> bytes_;  // 68 bytes are not printable
};

// ---- Vocabulary and merges

struct Vocabulary {
  std::vector<std::string> tokens;                         // by id, as the file writes them
  std::unordered_map<std::string_view, std::int32_t> ids;  // views of the file's strings
};

Vocabulary read_vocabulary(const Json& vocab, const Reader& reader) {
  reader.check(vocab.is_object(), "`vocab` must be an object of tokens and ids");
  Vocabulary vocabulary;
  vocabulary.ids.reserve(vocab.size());
  const std::size_t limit = id_limit(vocab.size());
  std::size_t size = 0;
  for (const auto& [token, value] : vocab.get_ref<const Json::object_t&>()) {
    const std::int32_t id = reader.id(value, token, limit);
    size = std::max(size, static_cast<std::size_t>(id) + 1);
    vocabulary.ids.emplace(token, id);
  }
  vocabulary.tokens.resize(size);
  for (const auto& [token, id] : vocabulary.ids) {
    std::string& place = vocabulary.tokens[static_cast<std::size_t>(id)];
    reader.check(place.empty(), "tokens `", place, "` and `", token, "` have the same id ", id);
    place = token;
  }
  return vocabulary;
}

class MergeReader {
 public:
  MergeReader(const Vocabulary& vocabulary, const Reader& reader) : vocabulary_(vocabulary), reader_(reader) {}

  void add(std::string_view left, std::string_view right) {
    joined_.assign(left).append(right);
    merges_.push_back({id_of(left), id_of(right), id_of(joined_)});
  }
  void add_line(std::string_view line) {
    const std::size_t space = line.find(' ');
    reader_.check(space != std::string_view::npos && line.find(' ', space + 1) == std::string_view::npos, "merge `",
                  line.substr(0, 80), "` must be two tokens with a space between them");
    add(line.substr(0, space), line.substr(space + 1));
  }
  std::vector<BpeMerge> take() { return std::move(merges_); }

 private:
  std::int32_t id_of(std::string_view token) const {
    const auto found = vocabulary_.ids.find(token);
    reader_.check(found != vocabulary_.ids.end(), "a merge needs the token `", token.substr(0, 80),
                  "`, which is not in the vocabulary");
    return found->second;
  }
  const Vocabulary& vocabulary_;
  const Reader& reader_;
  std::string joined_;
  std::vector<BpeMerge> merges_;
};

std::unique_ptr<Bpe> make_bpe(Vocabulary& vocabulary, const std::vector<BpeMerge>& merges, const BpeOptions& options,
                              TokenizerParts& parts) {
  if (options.byte_level) {
    const ByteAlphabet alphabet;
    for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
      std::string& token = vocabulary.tokens[id];
      if (auto bytes = alphabet.bytes_of(token)) {
        token = std::move(*bytes);
      } else {
        parts.decode_only.emplace_back(static_cast<std::int32_t>(id), std::move(token));
        token.clear();
      }
    }
  }
  return std::make_unique<Bpe>(std::move(vocabulary.tokens), merges, options);
}

void read_model(const Json& model, bool byte_level, const Reader& reader, TokenizerParts& parts) {
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    reader.check(reader.string_or(model, name, "").empty(), "`", name, "` is not supported");
  }
  const Json* dropout = member(model, "dropout");
  reader.check(dropout == nullptr || (dropout->is_number() && dropout->get<double>() == 0),
               "`dropout` is not supported: encoding would be random");
  const Json* vocab = member(model, "vocab");
  reader.check(vocab != nullptr, "`vocab` is missing");
  Vocabulary vocabulary = read_vocabulary(*vocab, reader);
  MergeReader merges(vocabulary, reader);
  for (const Json& merge : reader.array(model, "merges")) {
    if (merge.is_string()) {
      merges.add_line(merge.get_ref<const std::string&>());
    } else {
      reader.check(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(),
                   "a merge must be \"a b\" or [\"a\", \"b\"]");
      merges.add(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>());
    }
  }
  BpeOptions options;
  options.byte_level = byte_level;
  options.byte_fallback = reader.flag(model, "byte_fallback", false);
  options.ignore_merges = reader.flag(model, "ignore_merges", false);
  options.fuse_unk = reader.flag(model, "fuse_unk", false);
  if (member(model, "unk_token") != nullptr) {
    const std::string unk = reader.string(model, "unk_token");
    const auto found = vocabulary.ids.find(unk);
    reader.check(found != vocabulary.ids.end(), "`unk_token` `", unk, "` is not in the vocabulary");
    options.unk_id = found->second;
  }
  parts.bpe = make_bpe(vocabulary, merges.take(), options, parts);
}

// ---- Normalizers, pre-tokenizers, decoders

std::string pattern_of(const Json& step, const Reader& reader) {
  const Json* pattern = member(step, "pattern");
  if (pattern != nullptr && member(*pattern, "Regex") != nullptr) return reader.string(*pattern, "Regex");
  if (pattern != nullptr && member(*pattern, "String") != nullptr) {
    const std::string text = reader.string(*pattern, "String");
    reader.check(!text.empty(), "an empty pattern is not supported");
    return quoted_pattern(text);
  }
  fail(reader.place(), "`pattern` must be {\"Regex\": ...} or {\"String\": ...}");
}

void read_normalizer(const Json* step, const Reader& reader, TokenizerParts& parts) {
  if (step == nullptr) return;
  reader.check(parts.normalizers.size() < kMaxSteps, "more than ", kMaxSteps, " normalizers");
  const std::string type = reader.string(*step, "type");
  if (type == "Sequence") {
    for (const Json& inner : reader.array(*step, "normalizers")) read_normalizer(&inner, reader, parts);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    parts.normalizers.emplace_back(NormalFormStep{type == "NFC"    ? NormalForm::nfc
                                                  : type == "NFD"  ? NormalForm::nfd
                                                  : type == "NFKC" ? NormalForm::nfkc
                                                                   : NormalForm::nfkd});
  } else if (type == "Replace") {
    parts.normalizers.emplace_back(
        ReplaceStep{Regex(pattern_of(*step, reader), reader.place()), reader.string(*step, "content")});
  } else if (type == "Prepend") {
    parts.normalizers.emplace_back(PrependStep{reader.string(*step, "prepend")});
  } else {
    reader.check(false, "normalizer `", type, "` is not supported, expected NFC, NFD, NFKC, NFKD, Replace or Prepend");
  }
}

SplitBehavior behavior_of(const std::string& name, const Reader& reader) {
  constexpr std::array<const char*, 5> kNames = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                                                 "Contiguous"};
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  reader.check(found != kNames.end(), "behavior `", name, "` of a split is not known");
  return static_cast<SplitBehavior>(found - kNames.begin());
}

// True: from here on the text is bytes.
bool read_pre_tokenizer(const Json* step, const Reader& reader, TokenizerParts& parts) {
  if (step == nullptr) return false;
  reader.check(parts.splitters.size() < kMaxSteps, "more than ", kMaxSteps, " pre-tokenizers");
  const std::string type = reader.string(*step, "type");
  const auto split = [&](const std::string& pattern, SplitBehavior behavior, bool invert = false) {
    parts.splitters.emplace_back(SplitStep{Regex(pattern, reader.place()), behavior, invert});
  };
  if (type == "Sequence") {
    bool is_bytes = false;
    for (const Json& inner : reader.array(*step, "pretokenizers")) {
      reader.check(!is_bytes, "a pre-tokenizer after ByteLevel is not supported");
      is_bytes = read_pre_tokenizer(&inner, reader, parts);
    }
    return is_bytes;
  }
  if (type == "ByteLevel") {
    if (reader.flag(*step, "add_prefix_space", true)) parts.splitters.emplace_back(PrefixSpaceStep{});
    if (reader.flag(*step, "use_regex", true)) split(kGpt2Pattern, SplitBehavior::isolated);
    return true;
  }
  if (type == "Split") {
    split(pattern_of(*step, reader), behavior_of(reader.string(*step, "behavior"), reader),
          reader.flag(*step, "invert", false));
  } else if (type == "Digits") {
    split("\\p{N}",
          reader.flag(*step, "individual_digits", false) ? SplitBehavior::isolated : SplitBehavior::contiguous);
  } else if (type == "Punctuation") {
    split("[!-/:-@\\[-`{-~\\p{P}]", behavior_of(reader.string_or(*step, "behavior", "Isolated"), reader));
  } else if (type == "Whitespace") {
    constexpr auto kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}";
    split(std::string("[") + kWord + "]+|[^\\s" + kWord + "]+", SplitBehavior::removed, true);
  } else if (type == "WhitespaceSplit") {
    split("\\s", SplitBehavior::removed);
  } else if (type == "Metaspace") {
    using Prepend = MetaspaceStep::Prepend;
    MetaspaceStep metaspace;
    metaspace.replacement = reader.string(*step, "replacement");
    reader.check(utf8_length(metaspace.replacement) == metaspace.replacement.size() && !metaspace.replacement.empty(),
                 "`replacement` must be one character");
    const std::string scheme =
        reader.string_or(*step, "prepend_scheme", reader.flag(*step, "add_prefix_space", true) ? "always" : "never");
    reader.check(scheme == "always" || scheme == "first" || scheme == "never", "`prepend_scheme` `", scheme,
                 "` is not known, expected always, first or never");
    metaspace.prepend = scheme == "always" ? Prepend::always : scheme == "first" ? Prepend::first : Prepend::never;
    const std::string mark = quoted_pattern(metaspace.replacement);
    parts.splitters.emplace_back(std::move(metaspace));
    if (reader.flag(*step, "split", true)) split(mark, SplitBehavior::merged_with_next);
  } else {
    reader.check(
        false, "pre-tokenizer `", type,
        "` is not supported, expected ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit or Metaspace");
  }
  return false;
}

// Decoding is fixed by the alphabet; all there is to learn is how spaces are written and whether one is removed in
// front.
void read_decoder(const Json* step, const Reader& reader, TokenizerParts& parts) {
  if (step == nullptr) return;
  const std::string type = reader.string(*step, "type");
  if (type == "Sequence") {
    for (const Json& inner : reader.array(*step, "decoders")) read_decoder(&inner, reader, parts);
  } else if (type == "Metaspace") {
    parts.metaspace = true;
    parts.strips_leading_space = reader.string_or(*step, "prepend_scheme", "always") != "never";
  } else if (type == "Replace") {
    parts.metaspace = true;
  } else if (type == "Strip") {
    const Json* start = member(*step, "start");
    parts.strips_leading_space = start != nullptr && start->is_number_unsigned() && start->get<std::uint64_t>() > 0;
  } else if (type == "ByteFallback") {
    parts.byte_tokens = true;
  } else if (type != "ByteLevel" && type != "Fuse") {
    reader.check(false, "decoder `", type, "` is not supported");
  }
}

// One entry of a list of added tokens, without its id.
AddedToken added_token(const Json& json, const Reader& reader) {
  AddedToken token;
  token.content = reader.string(json, "content");
  token.special = reader.flag(json, "special", false);
  token.normalized = reader.flag(json, "normalized", !token.special);
  token.single_word = reader.flag(json, "single_word", false);
  token.lstrip = reader.flag(json, "lstrip", false);
  token.rstrip = reader.flag(json, "rstrip", false);
  return token;
}

void read_added_tokens(const Json& root, const Reader& reader, TokenizerParts& parts) {
  if (member(root, "added_tokens") == nullptr) return;
  const auto& tokens = reader.array(root, "added_tokens");
  const std::size_t limit = id_limit(parts.bpe->tokens().size() + tokens.size());
  for (const Json& json : tokens) {
    AddedToken token = added_token(json, reader);
    const Json* id = member(json, "id");
    reader.check(id != nullptr, "added token `", token.content, "` has no `id`");
    token.id = reader.id(*id, token.content, limit);
    parts.added.push_back(std::move(token));
  }
}

std::int64_t id_of_token(const TokenizerParts& parts, const std::string& token) {
  for (const AddedToken& added : parts.added)
    if (added.content == token) return added.id;
  return parts.bpe->id_of(token);
}

// A template that puts a special token in front of one text: that is the start token.
void read_post_processor(const Json* step, const Reader& reader, TokenizerParts& parts) {
  if (step == nullptr) return;
  const std::string type = reader.string(*step, "type");
  if (type == "Sequence") {
    for (const Json& inner : reader.array(*step, "processors")) read_post_processor(&inner, reader, parts);
  } else if (type == "TemplateProcessing") {
    const auto& items = reader.array(*step, "single");
    const Json* first = items.empty() ? nullptr : member(items.front(), "SpecialToken");
    if (first == nullptr) return;
    parts.bos_id = id_of_token(parts, reader.string(*first, "id"));
    parts.adds_bos = parts.bos_id >= 0;
  }
}

}  // namespace

bool is_bpe(const Json& tokenizer_json) {
  const Json* model = member(tokenizer_json, "model");
  if (model == nullptr) return false;
  const Json* type = member(*model, "type");  // files of old versions do not say
  return type != nullptr ? *type == "BPE" : model->contains("merges");
}

TokenizerParts parts_of_tokenizer_json(const Json& root, const std::string& label) {
  const Reader reader("[tokenizer] " + label + ": ");
  const Json* model = member(root, "model");
  reader.check(model != nullptr, "`model` is missing, expected a tokenizer.json");
  reader.check(is_bpe(root), "model `", reader.string_or(*model, "type", ""), "` is not supported, expected BPE");
  TokenizerParts parts;
  parts.kind = "tokenizer.json";
  parts.place = reader.place();
  read_normalizer(member(root, "normalizer"), reader, parts);
  const bool byte_level = read_pre_tokenizer(member(root, "pre_tokenizer"), reader, parts);
  read_decoder(member(root, "decoder"), reader, parts);
  read_model(*model, byte_level, reader, parts);
  read_added_tokens(root, reader, parts);
  read_post_processor(member(root, "post_processor"), reader, parts);
  return parts;
}

TokenizerParts parts_of_vocab_and_merges(std::string_view vocab, std::string_view merges, const TokenizerConfig& config,
                                         const std::string& label) {
  const Reader reader("[tokenizer] " + label + ": ");
  const std::string& class_name = config.tokenizer_class;
  const bool is_qwen = class_name.starts_with("Qwen2");
  reader.check(is_qwen || class_name.empty() || class_name.starts_with("GPT2"), "vocab.json of a `", class_name,
               "` is not supported, expected GPT2Tokenizer or Qwen2Tokenizer; a tokenizer.json beside it would do");
  TokenizerParts parts;
  parts.kind = "vocab.json";
  parts.place = reader.place();
  if (is_qwen) parts.normalizers.emplace_back(NormalFormStep{NormalForm::nfc});
  parts.splitters.emplace_back(SplitStep{Regex(is_qwen ? kQwen2Pattern : kGpt2Pattern, reader.place())});
  const Json tree = parse_json(vocab, label, 2);
  Vocabulary vocabulary = read_vocabulary(tree, reader);
  MergeReader reader_of_merges(vocabulary, reader);
  bool first = true;
  while (!merges.empty()) {
    const std::size_t end = std::min(merges.find('\n'), merges.size());
    std::string_view line = merges.substr(0, end);
    merges.remove_prefix(std::min(end + 1, merges.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    const bool is_header = first && line.starts_with("#version");
    first = false;
    if (!is_header && !line.empty()) reader_of_merges.add_line(line);
  }
  parts.bpe = make_bpe(vocabulary, reader_of_merges.take(), {}, parts);
  return parts;
}

TokenizerConfig read_tokenizer_config(std::string_view content, const std::string& label) {
  const Reader reader("[tokenizer] " + label + ": ");
  const Json root = parse_json(content, label);
  const auto token = [&](const char* name) -> std::string {
    const Json* value = member(root, name);
    if (value == nullptr) return "";
    const Json* text = value->is_object() ? member(*value, "content") : value;
    reader.check(text != nullptr && text->is_string(), "`", name, "` must be a token");
    return text->get<std::string>();
  };
  TokenizerConfig config;
  config.bos_token = token("bos_token");
  config.eos_token = token("eos_token");
  config.tokenizer_class = reader.string_or(root, "tokenizer_class", "");
  config.legacy = reader.flag(root, "legacy", false);
  config.add_prefix_space = reader.flag(root, "add_prefix_space", true);
  if (member(root, "add_bos_token") != nullptr) config.add_bos_token = reader.flag(root, "add_bos_token", false);
  for (const char* name :
       {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"}) {
    if (std::string text = token(name); !text.empty()) config.special_tokens.push_back(std::move(text));
  }
  for (const char* name : {"additional_special_tokens", "extra_special_tokens"}) {
    const Json* list = member(root, name);
    if (list == nullptr || !(list->is_array() || list->is_object())) continue;
    for (const Json& item : *list) {
      const Json* text = item.is_object() ? member(item, "content") : &item;
      if (text != nullptr && text->is_string()) config.special_tokens.push_back(text->get<std::string>());
    }
  }
  const Json* added = member(root, "added_tokens_decoder");
  if (added == nullptr) return config;
  reader.check(added->is_object(), "`added_tokens_decoder` must be an object of ids and tokens");
  for (const auto& [key, json] : added->get_ref<const Json::object_t&>()) {
    std::int32_t id = -1;
    const auto [read, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    reader.check(error == std::errc() && read == key.data() + key.size() && id >= 0 && id < kMaxAddedId,
                 "`added_tokens_decoder` has the id `", key.substr(0, 40), "`, expected a number below ", kMaxAddedId);
    reader.check(json.is_object(), "added token ", id, " must be an object");
    config.added.push_back(added_token(json, reader));
    config.added.back().id = id;
  }
  return config;
}

void read_added_tokens_json(std::string_view content, const std::string& label, TokenizerConfig& config) {
  const Reader reader("[tokenizer] " + label + ": ");
  const Json root = parse_json(content, label, 2);
  reader.check(root.is_object(), "added_tokens.json must be an object of tokens and ids");
  const std::vector<std::string>& names = config.special_tokens;
  std::vector<AddedToken> tokens;
  for (const auto& [text, value] : root.get_ref<const Json::object_t&>()) {
    const bool special = names.empty() || std::find(names.begin(), names.end(), text) != names.end();
    tokens.push_back({.content = text, .id = reader.id(value, text, kMaxAddedId), .special = special});
    tokens.back().normalized = !special;
  }
  add_tokens(tokens, false, config.added);
}

void add_tokens(const std::vector<AddedToken>& from, bool replaces, std::vector<AddedToken>& to) {
  for (const AddedToken& token : from) {
    const auto same = std::find_if(to.begin(), to.end(), [&](const AddedToken& other) {
      return other.content == token.content || other.id == token.id;
    });
    if (same == to.end()) {
      to.push_back(token);
    } else if (replaces && same->content != token.content) {
      *same = token;
    }
  }
}

void apply_tokenizer_config(const TokenizerConfig& config, TokenizerParts& parts) {
  // Names of tiktoken's special tokens are guessed where no file tells them.
  add_tokens(config.added, parts.kind == "tiktoken", parts.added);
  const auto known_id = [&](const std::string& token, std::int64_t otherwise) {
    const std::int64_t id = token.empty() ? -1 : id_of_token(parts, token);
    return id >= 0 ? id : otherwise;
  };
  parts.bos_id = known_id(config.bos_token, parts.bos_id);
  parts.eos_id = known_id(config.eos_token, parts.eos_id);
  parts.adds_bos = config.add_bos_token.value_or(parts.adds_bos) && parts.bos_id >= 0;
}

}  // namespace moh::text
