// The grammar is unambiguous, so the product of its choices is the probability of the text, and its entropy is exact.
#include "moh/data/stories.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

namespace {

using moh::data::StoryGrammar;

// Reading left to right, the alternative that was chosen is always recognised by its beginning: each begins with
// literal text (or, for a rule of sentences, with a name bound before), and none begins another. Then no text has two
// derivations.
TEST(StoryGrammar, AlternativesDifferFromTheBeginning) {
  const StoryGrammar grammar;
  for (const auto& [name, alternatives] : grammar.rules()) {
    if (alternatives.size() == 1) continue;
    std::vector<std::string> heads;
    for (const auto& alternative : alternatives) {
      ASSERT_FALSE(alternative.parts.empty()) << name;
      const auto& first = alternative.parts.front();
      // A name's text begins with a letter and is none of the other alternatives' words.
      heads.push_back(first.kind == StoryGrammar::Part::Kind::kText ? first.text : "[" + first.text + "]");
      EXPECT_NE(first.kind, StoryGrammar::Part::Kind::kRule) << name;
    }
    for (std::size_t i = 0; i < heads.size(); ++i) {
      for (std::size_t j = 0; j < heads.size(); ++j) {
        EXPECT_FALSE(i != j && heads[j].starts_with(heads[i])) << name << ": " << heads[i] << " | " << heads[j];
      }
    }
  }
}

TEST(StoryGrammar, SameTextSameProbabilityAndTheMeanIsTheEntropy) {
  const StoryGrammar grammar;
  std::uint64_t state = 5;
  std::map<std::string, double> seen;
  constexpr int kCount = 20000;
  double sum = 0, squares = 0;
  for (int i = 0; i < kCount; ++i) {
    const auto story = grammar.sample(state);
    const auto [found, is_new] = seen.emplace(story.text, story.nats);
    EXPECT_NEAR(found->second, story.nats, 1e-9) << story.text;
    EXPECT_EQ(story.text.find_first_of("<>[]~"), std::string::npos) << story.text;
    sum += story.nats;
    squares += story.nats * story.nats;
  }
  const double mean = sum / kCount, deviation = std::sqrt(squares / kCount - mean * mean);
  EXPECT_NEAR(mean, grammar.entropy_per_story(), 4 * deviation / std::sqrt(kCount));
  EXPECT_GT(deviation, 0.1);
}

TEST(StoryGrammar, LookBackOverTheStory) {
  const StoryGrammar grammar;
  std::uint64_t state = 9;
  std::set<std::string> vocabulary;
  double words = 0;
  for (int i = 0; i < 500; ++i) {
    const std::string text = grammar.sample(state).text;
    std::string word;
    for (const char c : text + " ") {
      if (c != ' ') {
        word += c;
        continue;
      }
      vocabulary.insert(word);
      word.clear();
      ++words;
    }
  }
  EXPECT_GT(words / 500, 60);
  EXPECT_LT(words / 500, 150);
  EXPECT_GT(vocabulary.size(), 200U);
  std::uint64_t again = 9;
  EXPECT_EQ(grammar.sample(again).text, [&] {
    std::uint64_t same = 9;
    return grammar.sample(same).text;
  }());
}

}  // namespace
