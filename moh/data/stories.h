// Short stories from a probabilistic grammar of the project's own, to try training without any data. The probability of
// every story is known exactly, and with it the lowest loss that any model can reach.
//
// Characters, things, places and numbers are introduced early and come back later, so that a model has to look back.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace moh::data {

struct Story {
  std::string text;  // one line, without its end
  double nats = 0;   // -ln p(text)
};

class StoryGrammar {
 public:
  StoryGrammar();

  // The same story for the same state on every platform; `state` moves on.
  Story sample(std::uint64_t& state) const;
  // The mean of Story::nats, exactly: by the chain rule over all choices.
  double entropy_per_story() const;

  // The grammar: a rule is a choice between alternatives. An alternative's parts are literal text, the expansion of
  // another rule (bound to a name or not), or the text of a name bound before, which costs nothing.
  struct Part {
    enum class Kind { kText, kRule, kReference, kSum } kind;
    std::string text;      // literal; rule; name; first name of a sum
    std::string name;      // kRule: bound to it, if not empty; kSum: the second name
    bool capital = false;  // kReference: with a capital letter
  };
  struct Alternative {
    double probability;
    std::vector<Part> parts;
    std::vector<std::pair<std::string, std::string>> sets;  // further names that it binds
  };
  const std::map<std::string, std::vector<Alternative>>& rules() const { return rules_; }

 private:
  using Names = std::map<std::string, std::string>;
  std::string expand(const std::string& rule, Names& names, std::uint64_t& state, double& nats) const;
  double entropy(const std::string& rule) const;
  std::map<std::string, std::vector<Alternative>> rules_;
};

// `count` stories, one a line, into a text file; returns -ln p of all of them.
double write_stories(const std::string& path, std::int64_t count, std::uint64_t seed);

}  // namespace moh::data
