// Byte-pair encoding and the files it is read from, against the rule written anew; PyPI's tokenizers are the oracle in
// tests/python/tokenizer_test.py.
#include "moh/text/tokenizer_bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "moh/io/files.h"
#include "moh/text/tokenizer_pipeline.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::text {
namespace {

using test::error_of;
using test::TempFolder;
using Ids = std::vector<std::int64_t>;

struct Model {
  std::vector<std::string> tokens = std::vector<std::string>(256);
  std::vector<BpeMerge> merges;
  std::map<std::pair<int, int>, std::pair<int, int>> ranks;  // pair: rank, result

  explicit Model(std::uint32_t seed, int num_merges) {
    std::mt19937 random(seed);
    for (int byte = 0; byte < 256; ++byte) tokens[byte] = std::string(1, static_cast<char>(byte));
    std::map<std::string, int> ids;
    for (int id = 0; id < 256; ++id) ids[tokens[id]] = id;
    std::vector<int> used = {'a', 'b', 'c'};
    while (static_cast<int>(merges.size()) < num_merges) {
      const int left = used[random() % used.size()], right = used[random() % used.size()];
      const std::string joined = tokens[left] + tokens[right];
      if (joined.size() > 12 || ranks.contains({left, right})) continue;
      if (!ids.contains(joined)) {
        ids[joined] = static_cast<int>(tokens.size());
        used.push_back(ids[joined]);
        tokens.push_back(joined);
      }
      ranks[{left, right}] = {static_cast<int>(merges.size()), ids[joined]};
      merges.push_back({left, right, ids[joined]});
    }
  }

  std::vector<std::int32_t> encode(const std::string& word) const {
    std::vector<std::int32_t> symbols;
    for (const char c : word) symbols.push_back(static_cast<unsigned char>(c));
    while (true) {
      std::pair<int, std::size_t> best = {1 << 30, 0};
      for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
        const auto found = ranks.find({symbols[i], symbols[i + 1]});
        if (found != ranks.end()) best = std::min(best, {found->second.first, i});
      }
      if (best.first == 1 << 30) return symbols;
      symbols[best.second] = ranks.at({symbols[best.second], symbols[best.second + 1]}).second;
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best.second) + 1);
    }
  }
};

TEST(Bpe, WordsOfAnyLengthFollowTheRule) {
  std::mt19937 random(5);
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    const Model model(seed, 60);
    const Bpe bpe(model.tokens, model.merges, {});
    std::vector<std::int32_t> ids;
    for (int trial = 0; trial < 200; ++trial) {
      std::string word;
      const std::size_t size = trial % 2 ? random() % 60 : random() % 400;
      for (std::size_t i = 0; i < size; ++i) word += "aaabbc"[random() % (trial % 3 ? 6 : 1)];
      bpe.encode(word, ids);
      ASSERT_EQ(ids, model.encode(word)) << word;
    }
  }
}

TEST(Bpe, ALongWordTakesNoQuadraticTime) {
  const Model model(3, 60);
  const Bpe bpe(model.tokens, model.merges, {});
  std::vector<std::int32_t> ids;
  bpe.encode(std::string(4 << 20, 'a'), ids);  // minutes if each merge moved the rest
  std::string text;
  for (const std::int32_t id : ids) text += bpe.tokens()[static_cast<std::size_t>(id)];
  EXPECT_EQ(text, std::string(4 << 20, 'a'));
}

TEST(WordCache, GivesWhatWasPutInAndStartsAnewWhenFull) {
  WordCache cache;
  std::map<std::string, std::vector<std::int32_t>> put;
  std::mt19937 random(9);
  int found = 0;
  for (int i = 0; i < 100000; ++i) {
    const std::string word = std::to_string(random() % 60000) + std::string(random() % 3, 'x');
    std::size_t count = 0;
    if (const std::int32_t* seen = cache.find(word, count)) {
      ++found;
      ASSERT_EQ(std::vector<std::int32_t>(seen, seen + count), put.at(word));
    } else {
      std::vector<std::int32_t> ids(random() % 5);
      for (auto& id : ids) id = static_cast<std::int32_t>(random() % 1000);
      cache.insert(word, ids.data(), ids.size());
      put[word] = ids;
    }
  }
  EXPECT_GT(found, 5000);
}

// A whole tokenizer.json; `change` edits it.
Json small_json() {
  return parse_json(R"({"added_tokens": [{"id": 5, "content": "<s>", "special": true}, {"id": 6, "content": "<b>"}],
    "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}]},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "\u0120ab": 4}, "merges": ["a b", ["\u0120", "ab"]]}})",
                    "test");
}

TEST(TokenizerJson, ReadsTokensStartTokenAndKinds) {
  const TempFolder folder;
  io::write_file(folder.file("tokenizer.json"), small_json().dump());
  const auto tokenizer = load_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->kind(), "tokenizer.json");
  EXPECT_EQ(tokenizer->vocab_size(), 7);
  EXPECT_EQ(tokenizer->encode("ab ab<s>b<b>"), (Ids{2, 4, 1, 6})) << "bytes without a token vanish, as in tokenizers";
  EXPECT_EQ(tokenizer->encode("ab ab<s>b<b>", true), (Ids{2, 4, 5, 1, 6}));
  EXPECT_EQ(tokenizer->decode({2, 4, 5, 6}), "ab ab<b>");
  EXPECT_EQ(tokenizer->bos_id(), 5);
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->eos_id(), -1);
  EXPECT_EQ(tokenizer->decode({2, 7, 1000000, 4}), "ab ab") << "the model's padding";
  EXPECT_NE(error_of([&] { tokenizer->decode({-1}); }).find("id -1 is less than 0"), std::string::npos);

  io::write_file(folder.file("tokenizer_config.json"),
                 R"({"add_bos_token": false, "bos_token": {"content": "<s>"}, "eos_token": "ab"})");
  const auto configured = load_tokenizer(folder.path());
  EXPECT_FALSE(configured->adds_bos());
  EXPECT_EQ(configured->eos_id(), 2);
}

TEST(TokenizerJson, EveryFaultIsNamed) {
  const auto fault = [](const std::string& pointer, const Json& value) {
    Json json = small_json();
    json[nlohmann::json_pointer<std::string>(pointer)] = value;
    return error_of([&] { PipelineTokenizer(parts_of_tokenizer_json(json, "FILE")); });
  };
  const std::tuple<std::string, Json, std::string> cases[] = {
      {"/model", nullptr, "`model` is missing"},
      {"/model/type", "Unigram", "model `Unigram` is not supported"},
      {"/model/vocab", Json::array(), "`vocab` must be an object"},
      {"/model/vocab/b", 0u, "have the same id 0"},
      {"/model/vocab/b", 4000000000u, "token `b` has the id 4000000000"},
      {"/model/vocab/b", -1, "token `b` has the id -1"},
      {"/model/vocab/b", "x", "token `b` has the id \"x\""},
      {"/model/merges", "a b", "`merges` must be a list"},
      {"/model/merges/0", "a", "must be two tokens"},
      {"/model/merges/0", "a b c", "must be two tokens"},
      {"/model/merges/0", Json::array({"a"}), "a merge must be"},
      {"/model/merges/0", "b a", "needs the token `ba`"},
      {"/model/unk_token", "u", "`unk_token` `u` is not in the vocabulary"},
      {"/model/dropout", 0.1, "`dropout` is not supported"},
      {"/model/end_of_word_suffix", "</w>", "`end_of_word_suffix` is not supported"},
      {"/model/byte_fallback", 1, "`byte_fallback` must be true or false"},
      {"/added_tokens/0/id", 1000000, "token `<s>` has the id 1000000"},
      {"/added_tokens/0/content", 1, "`content` must be a string"},
      {"/normalizer", {{"type", "Lowercase"}}, "normalizer `Lowercase` is not supported"},
      {"/pre_tokenizer", {{"type", "BertPreTokenizer"}}, "pre-tokenizer `BertPreTokenizer` is not supported"},
      {"/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "("}}}, {"behavior", "Isolated"}}, "split pattern"},
      {"/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "No"}}, "behavior `No`"},
      {"/decoder", {{"type", "WordPiece"}}, "decoder `WordPiece` is not supported"},
  };
  for (const auto& [pointer, value, words] : cases) {
    const std::string error = fault(pointer, value);
    EXPECT_EQ(error.find("[tokenizer] FILE: "), 0u) << pointer << ": " << error;
    EXPECT_NE(error.find(words), std::string::npos) << pointer << ": " << error;
  }
}

Json replace_step(const std::string& pattern, const std::string& content) {
  return {{"type", "Replace"}, {"pattern", {{"Regex", pattern}}}, {"content", content}};
}

TEST(TokenizerJson, AFileThatMeansHarmEndsInAnError) {
  const auto fault = [](const std::string& key, const Json& value, const std::string& text) {
    Json json = small_json();
    json[key] = value;
    return error_of([&] { PipelineTokenizer(parts_of_tokenizer_json(json, "FILE")).encode(text, false); });
  };
  // 10^20 bytes, were nobody to count.
  Json steps = Json::array();
  for (int i = 0; i < 20; ++i) steps.push_back(replace_step("a", "aaaaaaaaaa"));
  const Json grows = {{"type", "Sequence"}, {"normalizers", steps}};
  EXPECT_NE(fault("normalizer", grows, "a").find("expected at most 64 times its size"), std::string::npos);
  EXPECT_EQ(fault("normalizer", replace_step("a", "aaaaaaaaaa"), std::string(10000, 'a')), "");
  for (int i = 0; i < 60; ++i) steps.push_back(replace_step("a", "b"));
  const Json broken = {{"type", "Replace"}, {"pattern", {{"Regex", "a\n("}}}, {"content", ""}};
  const std::string quoted = fault("normalizer", broken, "");
  EXPECT_NE(quoted.find("a\\n("), std::string::npos) << quoted;
  EXPECT_EQ(quoted.find('\n'), std::string::npos) << quoted;
  const Json many = {{"type", "Sequence"}, {"normalizers", steps}};
  EXPECT_NE(fault("normalizer", many, "a").find("more than 64 normalizers"), std::string::npos);
  const Json long_token = Json::array({{{"id", 5u}, {"content", std::string(2000, 'x')}}});
  EXPECT_NE(fault("added_tokens", long_token, "a").find("has 2000 bytes"), std::string::npos);
}

TEST(TokenizerJson, SpacesBetweenAddedTokensTakeNoQuadraticTime) {
  Json json = small_json();
  json["added_tokens"] = Json::array({{{"id", 5u}, {"content", " "}, {"lstrip", true}, {"normalized", false}}});
  const PipelineTokenizer tokenizer(parts_of_tokenizer_json(json, "FILE"));
  const std::string spaces(1'000'000, ' ');  // half a minute if each looked back to the first
  EXPECT_EQ(tokenizer.encode(spaces, false).size(), spaces.size());
}

TEST(Tiktoken, EveryFaultIsNamed) {
  const auto fault = [](const std::string& content) { return error_of([&] { parts_of_tiktoken(content, "FILE"); }); };
  EXPECT_EQ(fault("IQ== 0\nIg== 2\n"), "[tokenizer] FILE: line 2: expected the rank 1, got `2`");
  EXPECT_EQ(fault("IQ== 0\nIg= 1\n"), "[tokenizer] FILE: line 2: expected a token in base64, a space and its rank");
  EXPECT_EQ(fault("IQ== 0\nIQ== 1\n"), "[tokenizer] FILE: the token of rank 1 has another rank too");
  EXPECT_EQ(fault("IQ== 0\n"), "[tokenizer] FILE: no token for the byte 0: not every text could be encoded");
  EXPECT_TRUE(is_tiktoken("IQ== 0\r\nIg== 1"));
  EXPECT_FALSE(is_tiktoken("\x0a\x0e"));
}

}  // namespace
}  // namespace moh::text
