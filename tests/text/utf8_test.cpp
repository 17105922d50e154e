#include "moh/text/utf8.h"

#include <gtest/gtest.h>

#include <random>

namespace moh::text {
namespace {

const std::string kBad = "\xef\xbf\xbd";

// Characters of every length, and what is not one: Unicode's table 3-7 and the examples of its section 3.9.
TEST(Utf8, RepairsMaximalParts) {
  const std::string good = "a\x7f\u00a9\u07ff\u0800\ud7fb\ue000\uffff\U00010000\U0010ffff";
  EXPECT_EQ(repair_utf8(good), good);
  EXPECT_TRUE(is_utf8(good));
  const std::pair<std::string, std::string> cases[] = {
      {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", kBad + kBad + kBad + kBad + kBad + kBad + kBad + kBad + "A"},
      {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", kBad + kBad + kBad + kBad + kBad + kBad + kBad + kBad + "A"},
      {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", kBad + kBad + kBad + kBad + kBad + "A" + kBad + kBad + "B"},
      {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", kBad + kBad + kBad + kBad + "A"},
      {"12345678\xe2\x82", "12345678" + kBad},
  };
  for (const auto& [broken, repaired] : cases) {
    EXPECT_FALSE(is_utf8(broken));
    EXPECT_EQ(repair_utf8(broken), repaired);
  }
}

TEST(Utf8, CodePointsRoundTrip) {
  for (std::uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    append_utf8(text, c);
    ASSERT_EQ(utf8_length(text), text.size()) << c;
    ASSERT_EQ(utf8_code_point(text), c);
  }
}

// However the bytes arrive, what comes out is the repaired whole, and every part of it is whole characters.
TEST(Utf8Stream, AnyCutGivesTheSameText) {
  std::mt19937 random(7);
  const std::string parts[] = {"a", "é", "中", "🙂", "\xe2\x82", "\xf0\x9f", "\x80", "\xff", "\xf0\x9f\x99"};
  for (int trial = 0; trial < 2000; ++trial) {
    std::string text;
    for (int i = 0; i < 12; ++i) text += parts[random() % std::size(parts)];
    Utf8Stream stream;
    std::string joined;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = 1 + random() % 3;
      const std::string ready = stream.push(text.substr(at, size));
      ASSERT_TRUE(is_utf8(ready));
      joined += ready;
      at += size;
    }
    joined += stream.finish();
    ASSERT_EQ(joined, repair_utf8(text));
  }
}

TEST(Utf8Stream, HoldsBackOnlyWhatCouldGoOn) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xf0\x9f"), "a");
  EXPECT_EQ(stream.push("\x99"), "");
  EXPECT_EQ(stream.push("\x82!"), "🙂!");
  EXPECT_EQ(stream.push("\xe2\x28"), kBad + "(") << "a bracket cannot follow";
  EXPECT_EQ(stream.push("\xe2"), "");
  EXPECT_EQ(stream.finish(), kBad);
  EXPECT_EQ(stream.finish(), "");
}

}  // namespace
}  // namespace moh::text
