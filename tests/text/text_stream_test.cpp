#include "moh/text/text_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/base/error_of.h"

namespace moh::text {
namespace {

// What a text shows with stop strings, character by character: the one that is complete first ends it before itself.
std::string shown(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t cut = std::string::npos;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) cut = std::min(cut, end - stop.size());
    }
    if (cut != std::string::npos) return text.substr(0, cut);
  }
  return text;
}

bool may_become_a_stop(const std::string& end, const std::vector<std::string>& stops) {
  return std::any_of(stops.begin(), stops.end(),
                     [&](const std::string& stop) { return end.size() < stop.size() && stop.starts_with(end); });
}

TEST(TextStream, StopStringsWhereverTokensEnd) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 4000; ++trial) {
    const auto word = [&](std::size_t most) {
      std::string text;
      for (std::size_t i = 1 + random() % most; i > 0; --i) text += static_cast<char>('a' + random() % 2);
      return text;
    };
    std::vector<std::string> stops;
    for (std::size_t i = random() % 3; i > 0; --i) stops.push_back(word(5));
    const std::string text = word(30);
    TextStream stream(stops);
    std::string out;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = std::min<std::size_t>(random() % 5, text.size() - at);
      out += stream.push(text.substr(at, size));
      at += size;
      const std::string want = shown(text.substr(0, at), stops);
      ASSERT_TRUE(want.starts_with(out)) << "of " << text << " too much is shown: " << out;
      // What is kept back could still be the beginning of a stop string, and begins as early as it must.
      if (stream.stopped()) break;
      ASSERT_TRUE(out.size() == want.size() || may_become_a_stop(want.substr(out.size()), stops)) << text << " " << out;
    }
    out += stream.finish();
    EXPECT_EQ(out, shown(text, stops));
    EXPECT_EQ(stream.stopped(), out != text || shown(text + "c", stops) != text + "c");
  }
}

TEST(TextStream, CharactersAcrossTokens) {
  TextStream stream({"\xe2\x82\xac"});  // €
  EXPECT_EQ(stream.push("a\xe2\x82"), "a");
  EXPECT_EQ(stream.push("\xad"), "\xe2\x82\xad") << "another character that begins so";
  EXPECT_EQ(stream.push("\xe2"), "");
  EXPECT_EQ(stream.push("\x82\xac z"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.push("more"), "");
  EXPECT_EQ(stream.finish(), "");

  TextStream broken({});
  EXPECT_EQ(broken.push("x\xf0\x9f"), "x");
  EXPECT_EQ(broken.finish(), "\xef\xbf\xbd");
}

TEST(TextStream, SpaceOfItsOwn) {
  TextStream stream({}, true);
  EXPECT_EQ(stream.push(""), "");
  EXPECT_EQ(stream.push(" a"), "a");
  EXPECT_EQ(stream.push(" b"), " b");
  EXPECT_NE(test::error_of([] { TextStream({""}); }), "");
}

// A tokenizer of bytes with a BOS token, which encode gives for "^".
class WithBos : public Tokenizer {
 public:
  explicit WithBos(bool adds) : adds_(adds) {}
  std::vector<std::int64_t> encode(std::string_view text, bool parse_special) const override {
    std::vector<std::int64_t> ids;
    for (const char c : text) ids.push_back(c == '^' && parse_special ? 1 : c);
    return ids;
  }
  std::string decode(const std::vector<std::int64_t>&) const override { return ""; }
  std::string piece_bytes(std::int64_t) const override { return ""; }
  std::int64_t vocab_size() const override { return 256; }
  std::int64_t bos_id() const override { return 1; }
  std::int64_t eos_id() const override { return -1; }
  bool adds_bos() const override { return adds_; }
  bool strips_leading_space() const override { return false; }
  std::string kind() const override { return "test"; }

 private:
  bool adds_;
};

TEST(PromptIds, ExactlyOneBos) {
  using Ids = std::vector<std::int64_t>;
  EXPECT_EQ(prompt_ids(WithBos(true), "a", 1, true), (Ids{1, 'a'}));
  EXPECT_EQ(prompt_ids(WithBos(true), "^a", 1, true), (Ids{1, 'a'}));
  EXPECT_EQ(prompt_ids(WithBos(true), "^a", 1, false), (Ids{1, '^', 'a'})) << "a text that is no template";
  EXPECT_EQ(prompt_ids(WithBos(false), "^a", 1, true), (Ids{1, 'a'}));
  EXPECT_EQ(prompt_ids(WithBos(false), "a", 1, true), (Ids{'a'}));
  EXPECT_EQ(prompt_ids(WithBos(true), "", 1, true), (Ids{1}));
  EXPECT_EQ(prompt_ids(WithBos(true), "a", -1, true), (Ids{'a'}));
}

}  // namespace
}  // namespace moh::text
