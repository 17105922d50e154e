// Normal forms against the examples of Unicode's annex 15, and in time that does not grow with the square.
#include "moh/text/unicode.h"

#include <gtest/gtest.h>

#include <chrono>

namespace moh::text {
namespace {

TEST(Normalize, ExamplesOfTheStandard) {
  struct Case {
    std::string text, nfd, nfc, nfkd, nfkc;
  };
  const Case cases[] = {
      // s with dot below and dot above, in every order; long s with dot above, then a dot below.
      {"\u1e69", "s\u0323\u0307", "\u1e69", "s\u0323\u0307", "\u1e69"},
      {"s\u0307\u0323", "s\u0323\u0307", "\u1e69", "s\u0323\u0307", "\u1e69"},
      {"\u1e9b\u0323", "\u017f\u0323\u0307", "\u1e9b\u0323", "s\u0323\u0307", "\u1e69"},
      {"\u212b", "A\u030a", "\u00c5", "A\u030a", "\u00c5"},                        // Angstrom sign
      {"\ufb01", "\ufb01", "\ufb01", "fi", "fi"},                                  // ligature
      {"\uac01", "\u1100\u1161\u11a8", "\uac01", "\u1100\u1161\u11a8", "\uac01"},  // Hangul
      {"\u0f73\u0f73", "\u0f71\u0f71\u0f72\u0f72", "\u0f71\u0f71\u0f72\u0f72", "\u0f71\u0f71\u0f72\u0f72",
       "\u0f71\u0f71\u0f72\u0f72"},  // a starter made of marks
      {"a\nb", "a\nb", "a\nb", "a\nb", "a\nb"},
      {std::string("\u00e9\0e\u0301", 6), std::string("e\u0301\0e\u0301", 7), std::string("\u00e9\0\u00e9", 5),
       std::string("e\u0301\0e\u0301", 7), std::string("\u00e9\0\u00e9", 5)},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(normalize(c.text, NormalForm::nfd), c.nfd) << c.text;
    EXPECT_EQ(normalize(c.text, NormalForm::nfc), c.nfc) << c.text;
    EXPECT_EQ(normalize(c.text, NormalForm::nfkd), c.nfkd) << c.text;
    EXPECT_EQ(normalize(c.text, NormalForm::nfkc), c.nfkc) << c.text;
  }
}

TEST(Normalize, AMegabyteOfMarksTakesNoQuadraticTime) {
  std::string text = "a", above, below;
  for (int i = 0; i < 250'000; ++i) {
    text += "\u0301\u0323";  // acute above (class 230), dot below (class 220)
    above += "\u0301";
    below += "\u0323";
  }
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(normalize(text, NormalForm::nfd), "a" + below + above);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace moh::text
