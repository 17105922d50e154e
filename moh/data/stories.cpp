#include "moh/data/stories.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include "moh/base/error.h"
#include "moh/io/files.h"

namespace moh::data {
namespace {

struct Line {
  const char* rule;
  double weight;
  const char* text;
};

// <rule> expands a rule, <name=rule> also remembers its text, [name] repeats it ([Name] with a capital letter), [a+b]
// is the sum of two numbers; `~he=she` at the end sets a name. To keep the text's derivation unique, the alternatives
// of a rule begin with text of their own, none the beginning of another (checked by a test).
constexpr Line kGrammar[] = {
    {"story", 4, "One <lost_toy>"},
    {"story", 3, "In <counting>"},
    {"story", 3, "There <hiding>"},
    {"story", 2, "Every <swap>"},

    {"lost_toy", 1,
     "<time> a <person> took a <size=size> <colour=colour> <toy=toy> to <place=place>. <weather> [He] played there <how> "
     "until it was late. When [name] came home, the [toy] was gone! <sad> \"Where did you play with it?\" asked [his] "
     "<family=family>. \"I played at [place],\" said [name]. So [he] and [his] [family] went back to [place]. They looked "
     "<under=spot>, and there was the [size] [colour] [toy]! <glad> \"Thank you,\" [he] said to [his] [family]. That night "
     "the [colour] [toy] slept <night>."},

    {"counting", 1,
     "the <season> a <person> picked <first=number> <fruit=fruit> in <place=place>. [His] friend <friend=friend> came by with "
     "a <size> <box=box> and gave [him] <second=number> more. \"How many do you have now?\" asked [friend]. [Name] counted "
     "<how>. \"I have [first+second]!\" said [name]. <glad> They put the [fruit] into the [box] and carried it home from "
     "[place]. [His] <family=family> made <dish=dish> out of the [fruit]. [Friend] and [name] ate the [dish] <night>."},

    {"hiding", 1,
     "was a <person> who had a <colour=colour> <pet=pet> called <petname=petname>. They lived <home=home>. One <time> [petname] "
     "wanted to play. The [pet] ran away and hid <spot=spot>. [Name] looked <wrong=wrong>, but no [pet] was there. <sad> Then "
     "[he] heard a <sound=sound> sound. It came from <hint>. [He] looked [spot], and there was the [colour] [pet]! \"I found you, "
     "[petname]!\" said [name]. <glad> They went back to the place where they lived, [home]."},

    {"swap", 1,
     "<season_day> a <person> met [his] friend <friend=friend> at <place=place>. [Name] brought a <colour=colour> <toy=toy>, and "
     "[friend] brought a <other_colour=other_colour> <thing=thing>. \"I like your [thing],\" said [name]. \"And I like "
     "your [toy],\" said [friend]. So they made a swap. Now [friend] had the [colour] [toy] and [name] had the "
     "[other_colour] [thing]. <glad> When [name] came home, [his] <family=family> asked, \"Where is your [toy]?\" \"I gave it "
     "to [friend],\" said [name]. <close>"},

    {"person", 5, "girl named <name=girl> ~he=she ~him=her ~his=her"},
    {"person", 5, "boy named <name=boy> ~he=he ~him=him ~his=his"},
    {"person", 1, "little old lady named <name=lady> ~he=she ~him=her ~his=her"},
    {"girl", 6, "Lily"},
    {"girl", 4, "Mia"},
    {"girl", 3, "Anna"},
    {"girl", 2, "Zoe"},
    {"girl", 1, "Ruth"},
    {"boy", 6, "Tim"},
    {"boy", 4, "Ben"},
    {"boy", 3, "Max"},
    {"boy", 2, "Leo"},
    {"boy", 1, "Oskar"},
    {"lady", 2, "Ida"},
    {"lady", 1, "Greta"},
    {"friend", 5, "Sam"},
    {"friend", 4, "Kim"},
    {"friend", 3, "Joe"},
    {"friend", 2, "Nora"},
    {"friend", 1, "Vera"},
    {"time", 5, "day"},
    {"time", 3, "morning"},
    {"time", 2, "afternoon"},
    {"time", 1, "evening"},
    {"season", 4, "summer"},
    {"season", 2, "autumn"},
    {"season", 1, "spring"},
    {"season_day", 3, "Sunday"},
    {"season_day", 2, "Friday"},
    {"season_day", 1, "Monday"},
    {"size", 5, "big"},
    {"size", 5, "small"},
    {"size", 2, "tiny"},
    {"size", 1, "round"},
    {"colour", 5, "red"},
    {"colour", 4, "blue"},
    {"colour", 3, "green"},
    {"colour", 2, "yellow"},
    {"colour", 1, "white"},
    {"other_colour", 4, "brown"},
    {"other_colour", 3, "orange"},
    {"other_colour", 2, "pink"},
    {"other_colour", 1, "black"},
    {"toy", 5, "ball"},
    {"toy", 4, "car"},
    {"toy", 3, "doll"},
    {"toy", 2, "kite"},
    {"toy", 2, "train"},
    {"toy", 1, "drum"},
    {"thing", 3, "book"},
    {"thing", 2, "hat"},
    {"thing", 2, "spoon"},
    {"thing", 1, "lamp"},
    {"place", 5, "the park"},
    {"place", 4, "the garden"},
    {"place", 3, "the river"},
    {"place", 2, "the big hill"},
    {"place", 1, "the old mill"},
    {"home", 4, "in a house by the sea"},
    {"home", 3, "at the edge of the wood"},
    {"home", 2, "near the market"},
    {"home", 1, "behind the church"},
    {"weather", 4, "The sun was warm."},
    {"weather", 2, "It was windy."},
    {"weather", 1, "A little rain fell."},
    {"how", 4, "happily"},
    {"how", 2, "slowly"},
    {"how", 2, "with care"},
    {"how", 1, "for a long time"},
    {"sad", 3, "[Name] was sad."},
    {"sad", 2, "\"Oh no!\" said [name]."},
    {"sad", 1, "Then [name] began to cry."},
    {"glad", 4, "[Name] was very happy."},
    {"glad", 2, "They laughed and laughed."},
    {"glad", 1, "What a good day it was!"},
    {"family", 5, "mom"},
    {"family", 4, "dad"},
    {"family", 2, "grandma"},
    {"family", 1, "uncle"},
    {"spot", 4, "under the table"},
    {"spot", 3, "behind the door"},
    {"spot", 3, "in the tall grass"},
    {"spot", 2, "on top of the wall"},
    {"spot", 1, "between two stones"},
    {"wrong", 3, "beside the bed"},
    {"wrong", 2, "near the well"},
    {"wrong", 1, "inside the shed"},
    {"hint", 2, "very near"},
    {"hint", 1, "far away"},
    {"night", 3, "in the kitchen"},
    {"night", 2, "by the fire"},
    {"night", 1, "under the stars"},
    {"pet", 5, "dog"},
    {"pet", 5, "cat"},
    {"pet", 2, "rabbit"},
    {"pet", 1, "goat"},
    {"petname", 4, "Spot"},
    {"petname", 3, "Fluffy"},
    {"petname", 2, "Pip"},
    {"petname", 1, "Momo"},
    {"sound", 3, "soft"},
    {"sound", 2, "funny"},
    {"sound", 1, "loud"},
    {"fruit", 4, "apples"},
    {"fruit", 3, "pears"},
    {"fruit", 2, "berries"},
    {"fruit", 1, "cherries"},
    {"box", 3, "basket"},
    {"box", 2, "pot"},
    {"box", 1, "sack"},
    {"dish", 3, "pie"},
    {"dish", 2, "jam"},
    {"dish", 1, "soup"},
    {"number", 4, "two"},
    {"number", 4, "three"},
    {"number", 2, "four"},
    {"number", 1, "five"},
    {"close", 3, "From then on they were the best of friends."},
    {"close", 2, "And they played again the next day."},
    {"close", 1, "Both of them were glad about it."},
};

constexpr std::array<const char*, 11> kNumbers = {"zero", "one",   "two",   "three", "four", "five",
                                                  "six",  "seven", "eight", "nine",  "ten"};

std::string sum_of(const std::string& a, const std::string& b) {
  const auto value = [](const std::string& word) {
    return std::find(kNumbers.begin(), kNumbers.end(), word) - kNumbers.begin();
  };
  return kNumbers.at(static_cast<std::size_t>(value(a) + value(b)));
}

std::string capitalised(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

StoryGrammar::Part parse_bracket(const std::string& inner, bool is_rule) {
  using Kind = StoryGrammar::Part::Kind;
  if (is_rule) {
    const std::size_t equals = inner.find('=');
    if (equals == std::string::npos) return {Kind::kRule, inner, ""};
    return {Kind::kRule, inner.substr(equals + 1), inner.substr(0, equals)};
  }
  const std::size_t plus = inner.find('+');
  if (plus != std::string::npos) return {Kind::kSum, inner.substr(0, plus), inner.substr(plus + 1)};
  const bool capital = std::isupper(static_cast<unsigned char>(inner[0])) != 0;
  std::string name = inner;
  name[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(name[0])));
  return {Kind::kReference, name, "", capital};
}

StoryGrammar::Alternative parse_alternative(const Line& line) {
  using Kind = StoryGrammar::Part::Kind;
  StoryGrammar::Alternative alternative{line.weight, {}, {}};
  std::string text = line.text;
  for (std::size_t mark; (mark = text.rfind(" ~")) != std::string::npos; text.resize(mark)) {
    const std::size_t equals = text.find('=', mark);
    alternative.sets.emplace_back(text.substr(mark + 2, equals - mark - 2), text.substr(equals + 1));
  }
  while (!text.empty()) {
    const std::size_t open = text.find_first_of("<[");
    if (open != 0) alternative.parts.push_back({Kind::kText, text.substr(0, open), ""});
    if (open == std::string::npos) break;
    const std::size_t close = text.find_first_of(">]", open);
    alternative.parts.push_back(parse_bracket(text.substr(open + 1, close - open - 1), text[open] == '<'));
    text.erase(0, close + 1);
  }
  return alternative;
}

// splitmix64 (public domain), 53 bits of it as a number in [0, 1).
double uniform(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

}  // namespace

StoryGrammar::StoryGrammar() {
  for (const Line& line : kGrammar) rules_[line.rule].push_back(parse_alternative(line));
  for (auto& [name, alternatives] : rules_) {
    double total = 0;
    for (const Alternative& alternative : alternatives) total += alternative.probability;
    for (Alternative& alternative : alternatives) alternative.probability /= total;
  }
}

std::string StoryGrammar::expand(const std::string& rule, Names& names, std::uint64_t& state, double& nats) const {
  const auto& alternatives = rules_.at(rule);
  double left = uniform(state);
  std::size_t chosen = 0;
  while (chosen + 1 < alternatives.size() && left >= alternatives[chosen].probability) {
    left -= alternatives[chosen++].probability;
  }
  const Alternative& alternative = alternatives[chosen];
  nats -= std::log(alternative.probability);
  for (const auto& [name, value] : alternative.sets) names[name] = value;
  std::string text;
  for (const Part& part : alternative.parts) {
    switch (part.kind) {
      case Part::Kind::kText:
        text += part.text;
        break;
      case Part::Kind::kRule: {
        const std::string inner = expand(part.text, names, state, nats);
        if (!part.name.empty()) names[part.name] = inner;
        text += inner;
        break;
      }
      case Part::Kind::kReference:
        text += part.capital ? capitalised(names.at(part.text)) : names.at(part.text);
        break;
      case Part::Kind::kSum:
        text += sum_of(names.at(part.text), names.at(part.name));
        break;
    }
  }
  return text;
}

Story StoryGrammar::sample(std::uint64_t& state) const {
  Story story;
  Names names;
  story.text = expand("story", names, state, story.nats);
  return story;
}

// H(rule) = H(choice) + sum_i p_i * sum of H over the rules that alternative i expands. Exact, because no choice
// depends on an earlier one except through the rules reached.
double StoryGrammar::entropy(const std::string& rule) const {
  double total = 0;
  for (const Alternative& alternative : rules_.at(rule)) {
    double inner = -std::log(alternative.probability);
    for (const Part& part : alternative.parts) {
      if (part.kind == Part::Kind::kRule) inner += entropy(part.text);
    }
    total += alternative.probability * inner;
  }
  return total;
}

double StoryGrammar::entropy_per_story() const { return entropy("story"); }

double write_stories(const std::string& path, std::int64_t count, std::uint64_t seed) {
  MOH_CHECK(count > 0, "[stories] count must be positive, got ", count);
  const StoryGrammar grammar;
  std::uint64_t state = seed;
  double nats = 0;
  std::string text;
  for (std::int64_t i = 0; i < count; ++i) {
    const Story story = grammar.sample(state);
    text += story.text;
    text += '\n';
    nats += story.nats;
  }
  io::write_file(path, text);
  return nats;
}

}  // namespace moh::data
