#include "moh/text/tokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "moh/base/fields.h"
#include "moh/io/files.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::text {
namespace {

using test::error_of;
using test::TempFolder;

const std::string kData = MOH_SOURCE_DIR "/../shared/data/";
using Ids = std::vector<std::int64_t>;

std::string sample_text() {
  const std::string words[] = {"the", "little", "head", "of", "attention", "42", "mixture", "sees", "every", "token"};
  std::mt19937 random(3);
  std::string text;
  for (int i = 0; i < 4000; ++i) text += words[random() % 10] + (random() % 9 ? " " : ".\n");
  return text;
}

// Trained once, for all tests of this file.
const Tokenizer& trained() {
  static const auto tokenizer = [] {
    const TempFolder folder;
    io::write_file(folder.file("text.txt"), sample_text());
    train_tokenizer(folder.file("text.txt"), folder.path(), 320);
    EXPECT_EQ(folder.count(), 2);
    return load_tokenizer(folder.path());
  }();
  return *tokenizer;
}

std::string joined_pieces(const Tokenizer& tokenizer, const Ids& ids) {
  std::string text;
  for (const std::int64_t id : ids) text += tokenizer.piece_bytes(id);
  return text;
}

TEST(BytesTokenizer, RoundTrip) {
  const auto tokenizer = bytes_tokenizer();
  const std::string text("a\0\xff\n", 4);
  EXPECT_EQ(tokenizer->encode(text), (Ids{97, 0, 255, 10}));
  EXPECT_EQ(tokenizer->decode({97, 0, 255, 10}), text);
  EXPECT_EQ(tokenizer->piece_bytes(255), "\xff");
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->bos_id(), -1);
  EXPECT_EQ(tokenizer->eos_id(), -1);
  EXPECT_EQ(tokenizer->kind(), "bytes");
  EXPECT_EQ(tokenizer->decode({97, 256, 98}), "ab") << "a model may have more";
  EXPECT_NE(error_of([&] { tokenizer->piece_bytes(-1); }), "");
}

TEST(LoadTokenizer, BytesOnlyForFoldersWithoutTokenizer) {
  const TempFolder folder;
  EXPECT_EQ(load_tokenizer(folder.path())->kind(), "bytes");
  EXPECT_EQ(error_of([&] { load_tokenizer(folder.file("none")); }),
            "[tokenizer] " + folder.file("none") + ": expected a model folder");
  io::write_file(folder.file("tekken.json"), "{}");
  EXPECT_EQ(
      error_of([&] { load_tokenizer(folder.path()); }),
      "[tokenizer] " + folder.path() +
          ": no tokenizer that can be read (tekken.json), expected tokenizer.json, tokenizer.model, or vocab.json "
          "and merges.txt");
  io::write_file(folder.file("tokenizer.json"), "{}");
  EXPECT_EQ(error_of([&] { load_tokenizer(folder.path()); }),
            "[tokenizer] " + folder.file("tokenizer.json") + ": `model` is missing, expected a tokenizer.json");
  EXPECT_EQ(tokenizer_files(folder.path()), (std::vector<std::string>{"tokenizer.json", "tekken.json"}));
}

TEST(SentencePiece, TrainedTokenizer) {
  const Tokenizer& tokenizer = trained();
  EXPECT_EQ(tokenizer.kind(), "sentencepiece");
  EXPECT_EQ(tokenizer.vocab_size(), 320);
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.piece_bytes(0), " \xe2\x81\x87 ");
  EXPECT_EQ(tokenizer.piece_bytes(1), "");
  EXPECT_EQ(tokenizer.piece_bytes(2), "");
  EXPECT_EQ(tokenizer.piece_bytes(3 + 10), "\n") << "byte pieces follow the control pieces";
  EXPECT_EQ(tokenizer.piece_bytes(3 + 255), "\xff");
  EXPECT_LT(tokenizer.encode("the little head of attention").size(), 15u);
  EXPECT_EQ(tokenizer.encode("42").size(), 3u) << "digits are split";
}

TEST(SentencePiece, TextsRoundTrip) {
  const Tokenizer& tokenizer = trained();
  const std::vector<std::string> texts = {"",
                                          "the head",
                                          " leading",
                                          "trailing ",
                                          "  two  spaces  ",
                                          " ",
                                          "a\nb\n\nc\n",
                                          "\n",
                                          "\n the\n",
                                          "tabs\tand\r\n",
                                          "größe 中文 🙂",
                                          "3.14159",
                                          "<s> </s> <unk> <0x41>",
                                          "x\x01y",
                                          std::string("nul\0nul", 7)};
  for (const std::string& text : texts) {
    const Ids ids = tokenizer.encode(text);
    EXPECT_EQ(tokenizer.decode(ids), text);
    const std::string pieces = joined_pieces(tokenizer, ids);
    EXPECT_EQ(pieces, text.empty() ? "" : " " + text) << "one leading space more than the text";
    for (const std::int64_t id : ids) EXPECT_GT(id, 2) << "special tokens in the text stay text: " << text;
  }
}

TEST(SentencePiece, LongTextRoundTrips) {
  const std::string text = sample_text();
  EXPECT_EQ(trained().decode(trained().encode(text)), text);
}

TEST(SentencePiece, SpecialTokensDecode) {
  EXPECT_EQ(trained().decode({1, 2}), "");
  EXPECT_EQ(trained().decode({0}), " \xe2\x81\x87 ");
  EXPECT_EQ(trained().decode({3 + 0xc3}), "\xef\xbf\xbd") << "half of a UTF-8 sequence";
  EXPECT_EQ(trained().piece_bytes(3 + 0xc3), "\xc3");
}

TEST(SentencePiece, IdsOutsideTheVocabulary) {
  for (const std::int64_t id : {std::int64_t{320}, std::int64_t{1} << 32, (std::int64_t{1} << 32) + 5}) {
    EXPECT_EQ(trained().decode({5, id, 6}), trained().decode({5, 6}));
    EXPECT_EQ(trained().piece_bytes(id), "");
  }
  EXPECT_NE(error_of([&] { trained().decode({5, -1}); }).find("id -1 is less than 0"), std::string::npos);
  EXPECT_NE(error_of([&] { trained().piece_bytes(-1); }).find("id -1 is less than 0"), std::string::npos);
}

TEST(TrainTokenizer, Errors) {
  const TempFolder folder;
  const std::string text = folder.file("text.txt");
  const auto error_training = [&](int vocab_size) {
    return error_of([&] { train_tokenizer(text, folder.path(), vocab_size); });
  };
  EXPECT_EQ(error_training(300), "[files] " + text + ": cannot open: No such file or directory");
  io::write_file(text, "");
  EXPECT_NE(error_training(300).find("cannot train a tokenizer of 300 pieces"), std::string::npos);
  io::write_file(text, "the little head of attention\n");
  for (const int size : {-1, 0, 1, 100, 260}) {
    EXPECT_NE(error_training(size).find("cannot train a tokenizer of " + std::to_string(size)), std::string::npos)
        << size;
  }
  EXPECT_NE(error_training(5000).find("Vocabulary size too high (5000). Please set it to a value <= "),
            std::string::npos);
  EXPECT_EQ(folder.count(), 1) << "no model is written";
}

// The trainer alone aborts on a word of more than 65535 characters and passes over lines of more than 4192 bytes.
TEST(TrainTokenizer, TextWithoutSpacesOrNewlines) {
  const TempFolder folder;
  std::mt19937 random(4);
  std::string text;
  for (int i = 0; i < 60'000; ++i) text += random() % 3 ? "ab" : "中";
  io::write_file(folder.file("text.txt"), text);
  train_tokenizer(folder.file("text.txt"), folder.path(), 280);
  const auto tokenizer = load_tokenizer(folder.path());
  EXPECT_EQ(tokenizer->vocab_size(), 280);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_EQ(error_of([&] { tokenizer->encode("\xff"); }), "") << "invalid UTF-8 becomes U+FFFD";
}

TEST(TrainTokenizer, IsQuietAndDeterministic) {
  const TempFolder first, second;
  io::write_file(first.file("text.txt"), sample_text() + "\xff\xfe\n\t\tx\r\n" + std::string("\0\n", 2));
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  train_tokenizer(first.file("text.txt"), first.path(), 310);
  train_tokenizer(first.file("text.txt"), second.path(), 310);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(io::read_file(first.file("tokenizer.model")), io::read_file(second.file("tokenizer.model")));
}

// Damaged models end in an Error or in a tokenizer that works; never in a crash or words on stderr.
void damage_and_load(const std::string& model, int rounds) {
  const TempFolder folder;
  std::mt19937 random(5);
  int refused = 0;
  testing::internal::CaptureStderr();
  for (int round = 0; round < rounds; ++round) {
    std::string file = model;
    for (std::size_t edits = 1 + random() % 3; edits > 0 && !file.empty(); --edits) {
      const std::size_t at = random() % file.size();
      switch (random() % 5) {
        case 0:
          file[at] = static_cast<char>(random());
          break;
        case 1:
          file[at] ^= static_cast<char>(1 << random() % 8);
          break;
        case 2:
          file.erase(at, 1 + random() % 16);
          break;
        case 3:
          file.insert(at, file.substr(random() % file.size(), random() % 40));
          break;
        default:
          file.resize(random() % 10 ? at | 1 : at / 100);
      }
    }
    io::write_file(folder.file("tokenizer.model"), file);
    const std::string error = error_of([&] {
      const auto tokenizer = load_tokenizer(folder.path());
      const Ids ids = tokenizer->encode("the  little\nhead größe 42 <s>\xff");
      tokenizer->decode(ids);
      for (std::int64_t id = 0; id < tokenizer->vocab_size(); ++id) tokenizer->piece_bytes(id);
    });
    refused += !error.empty();
    ASSERT_TRUE(error.empty() || error.starts_with("[tokenizer] ")) << error;
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_GT(refused, 0);
}

TEST(SentencePiece, SurvivesRandomDamage) {
  const TempFolder folder;
  io::write_file(folder.file("text.txt"), sample_text());
  train_tokenizer(folder.file("text.txt"), folder.path(), 300);
  damage_and_load(io::read_file(folder.file("tokenizer.model")), 300);
}

std::string proto_field(int field, const std::string& bytes) {
  std::string out(1, static_cast<char>(field << 3 | 2));
  for (std::size_t size = bytes.size();; size >>= 7) {
    out += static_cast<char>((size & 0x7f) | (size >= 0x80 ? 0x80 : 0));
    if (size < 0x80) return out + bytes;
  }
}

std::string words_of(const std::vector<std::uint32_t>& values) {
  std::string bytes;
  for (const std::uint32_t value : values)
    for (int i = 0; i < 4; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

// SentencePiece follows a model's normalisation rules, a trie of offsets, without checking them.
TEST(SentencePiece, NormalisationRulesAreChecked) {
  const TempFolder folder;
  io::write_file(folder.file("text.txt"), sample_text());
  train_tokenizer(folder.file("text.txt"), folder.path(), 300);
  const std::string model = io::read_file(folder.file("tokenizer.model"));
  const auto error_with = [&](const std::vector<std::uint32_t>& trie, const std::string& texts) {
    const std::string rules = words_of({static_cast<std::uint32_t>(4 * trie.size())}) + words_of(trie) + texts;
    io::write_file(folder.file("tokenizer.model"), model + proto_field(3, proto_field(2, rules)));
    return error_of([&] { load_tokenizer(folder.path())->encode("a b c"); });
  };
  // One rule, "a" to "h": the root's children are at 1 ^ byte; that of 'a' has its leaf at 0x60 ^ 2, pointing to text
  // 0.
  std::vector<std::uint32_t> trie(256);
  trie[0] = 1 << 10;
  trie[0x60] = 2 << 10 | 1 << 8 | 'a';
  trie[0x62] = 0x80000000;
  const std::string texts("h\0", 2);
  ASSERT_EQ(error_with(trie, texts), "");
  EXPECT_EQ(load_tokenizer(folder.path())->encode("atteation"), load_tokenizer(folder.path())->encode("httehtion"));

  const std::string damaged =
      "[tokenizer] " + folder.file("tokenizer.model") + ": not a SentencePiece model, or damaged";
  const auto changed = [&](std::size_t at, std::uint32_t unit) {
    auto copy = trie;
    copy[at] = unit;
    return copy;
  };
  EXPECT_EQ(error_with(changed(0, 0x1fffffu << 10 | 0x200), texts), damaged) << "the root's children are far away";
  EXPECT_EQ(error_with(changed(0x60, 0x100u << 10 | 1 << 8 | 'a'), texts), damaged) << "the leaf is outside";
  EXPECT_EQ(error_with(changed(0x62, 0x80000002), texts), damaged) << "the text is outside";
  EXPECT_EQ(error_with(trie, "h"), damaged) << "the text does not end";
  EXPECT_EQ(error_with({}, texts), damaged);
}

TEST(SentencePiece, NotAModel) {
  const TempFolder folder;
  testing::internal::CaptureStderr();
  for (const std::string& content :
       {std::string(), std::string("hello"), std::string(1000, '\xff'), std::string("{}")}) {
    io::write_file(folder.file("tokenizer.model"), content);
    const std::string error = error_of([&] { load_tokenizer(folder.path()); });
    EXPECT_TRUE(
        error.starts_with("[tokenizer] " + folder.file("tokenizer.model") + ": not a SentencePiece model, or damaged"))
        << error;
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(LoadTokenizer, ReferenceEncodings) {
  if (!std::filesystem::exists(kData)) GTEST_SKIP() << kData << " is not there";
  const Json reference = parse_json(io::read_file(kData + "tokenizers/reference_encodings.json"), "reference");
  ASSERT_EQ(reference.size(), 22u);
  struct Model {
    std::string name, folder, kind;
    std::int64_t bos, eos;
  };
  const Model kModels[] = {{"llama2", "tokenizers/llama2", "sentencepiece", 1, 2},
                           {"stories260K", "models/stories260K", "sentencepiece", 1, 2},
                           {"gpt2", "tokenizers/gpt2", "tokenizer.json", -1, -1},
                           {"llama3", "tokenizers/llama3", "tiktoken", 128000, 128001}};
  for (const auto& [name, folder, kind, bos, eos] : kModels) {
    const auto tokenizer = load_tokenizer(kData + folder);
    EXPECT_EQ(tokenizer->kind(), kind);
    EXPECT_EQ(tokenizer->bos_id(), bos);
    EXPECT_EQ(tokenizer->eos_id(), eos);
    EXPECT_EQ(tokenizer->adds_bos(), bos >= 0);
    for (const Json& item : reference) {
      const std::string text = item["text"].get<std::string>();
      const Ids ids = tokenizer->encode(text);
      EXPECT_EQ(ids, item[name].get<Ids>()) << name << " on " << text;
      if (name == "stories260K") continue;  // it drops and folds spaces
      EXPECT_EQ(tokenizer->decode(ids), text);
      const bool adds_space = tokenizer->strips_leading_space() && !text.empty();
      EXPECT_EQ(joined_pieces(*tokenizer, ids), (adds_space ? " " : "") + text);
    }
  }
}

}  // namespace
}  // namespace moh::text
