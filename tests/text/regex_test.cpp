#include "moh/text/regex.h"

#include <gtest/gtest.h>

#include "tests/base/error_of.h"

namespace moh::text {
namespace {

using test::error_of;

std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  const Regex regex(pattern, "[test] ");
  Regex::Scratch scratch;
  std::vector<std::string> found;
  for (std::size_t at = 0; at < text.size();) {
    const auto match = regex.find(text, at, scratch);
    if (!match || match->first == match->second) break;
    found.push_back(text.substr(match->first, match->second - match->first));
    at = match->second;
  }
  return found;
}
using Texts = std::vector<std::string>;

TEST(Regex, UnicodeClasses) {
  EXPECT_EQ(matches("\\s+", "a\u3000\u00a0\u2028\u0085 b").size(), 1u);
  EXPECT_EQ(matches("\\s", "\u180e\u200b\ufeff"), Texts{}) << "no white space since Unicode 6.3";
  EXPECT_EQ(matches("\\d+", "12٣४ Ⅷ½"), (Texts{"12٣४"}));
  EXPECT_EQ(matches("\\w+", "né_7 ½-ⓐ"), (Texts{"né_7", "½", "ⓐ"}));
  EXPECT_EQ(matches("[^\\s\\w]+", "a ,. b!"), (Texts{",.", "!"}));
  EXPECT_EQ(matches("\\p{Han}+", "中、文ー"), (Texts{"中", "文"})) << "the script, not all scripts that use a sign";
  EXPECT_EQ(matches("\\p{^L}+|\\P{N}", "1-2"), (Texts{"1-2"}));
  EXPECT_EQ(matches("(?i:'s|'ll)", "'S 'ſ 'LL 'x"), (Texts{"'S", "'ſ", "'LL"}));
  EXPECT_EQ(matches("a.c", "a\nc abc"), (Texts{"abc"}));
  EXPECT_EQ(matches("x{,2}y", "xxy"), (Texts{"xxy"}));
  EXPECT_EQ(matches("\\u00e9|\\x{1F642}|\\x41", "é🙂A"), (Texts{"é", "🙂", "A"}));
}

TEST(Regex, QuotedPatternMatchesItself) {
  std::string text;
  for (char c = 1; c < 127; ++c) text += c;
  text += "é▁";
  EXPECT_EQ(matches(quoted_pattern(text), text), Texts{text});
}

TEST(Regex, RefusesWhatMeansSomethingElse) {
  for (const char* pattern : {"\\h",     "\\R",   "\\b",  "\\1",           "\\C",  "\\xff",  "[a[bc]]", "[[:alpha:]]",
                              "[a&&b]",  "[\\W]", "[]a]", "(*UCP)a",       "(?R)", "(?m:a)", "(?<n>a)", "(?C1)",
                              "a{1,2}+", "\\",    "\\p{", "\\p{Nonsense}", "(",    "[a",     "a{5,2}",  "(?<=a+)b"}) {
    EXPECT_NE(error_of([&] { Regex(pattern, "[test] "); }).find("[test] cannot read the split pattern"),
              std::string::npos)
        << pattern;
  }
  std::string deep;
  for (int i = 0; i < 200; ++i) deep += '(';
  EXPECT_NE(error_of([&] { Regex(deep + std::string(200, ')'), "[test] "); }), "");
  EXPECT_NE(error_of([&] { Regex(std::string(100000, 'a'), "[test] "); }), "");
}

TEST(Regex, GivesUpOnPatternsThatExplode) {
  const Regex regex("(?:a|aa)+[bc]", "[test] ");
  Regex::Scratch scratch;
  EXPECT_NE(error_of([&] { regex.find(std::string(200, 'a'), 0, scratch); }).find("gave up"), std::string::npos);
}

}  // namespace
}  // namespace moh::text
