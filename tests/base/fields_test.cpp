#include "moh/base/fields.h"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/base/error_of.h"

namespace moh {
namespace {

using test::error_of;

struct SampleConfig {
  std::int64_t num_heads = 8;
  int shared_heads = 2;
  double lr = 3e-4;
  bool causal = true;
  std::string name = "tiny";
  std::vector<std::int64_t> top_k = {4, 4};
  std::uint8_t level = 1;

  template <class V>
  void fields(V& visit) {
    visit("num_heads", num_heads, "heads per layer");
    visit("shared_heads", shared_heads, "heads that every token uses");
    visit("lr", lr, "peak learning rate");
    visit("causal", causal, "mask the future");
    visit("name", name, "name of the run");
    visit("top_k", top_k, "active heads per layer");
    visit("level", level, "0 to 255");
  }
};

std::string reading_error(const std::string& json) {
  return error_of([&] {
    SampleConfig config;
    from_json(parse_json(json, "test"), config, "config.json");
  });
}

TEST(Fields, RoundTrip) {
  SampleConfig config;
  config.num_heads = std::int64_t{1} << 40;
  config.lr = 0.1;
  config.name = "größe \"quoted\"\n";
  config.top_k = {1, 2, 3};
  SampleConfig read;
  from_json(parse_json(to_json(config).dump(), "test"), read, "test");
  EXPECT_EQ(to_json(read).dump(), to_json(config).dump());
  EXPECT_EQ(read.num_heads, config.num_heads);
  EXPECT_EQ(read.lr, 0.1);
  EXPECT_EQ(read.name, config.name);
  EXPECT_EQ(read.top_k, config.top_k);
}

TEST(Fields, KeepsTheOrderOfTheList) {
  EXPECT_EQ(to_json(SampleConfig{}).begin().key(), "num_heads");
  EXPECT_EQ(field_names<SampleConfig>().back(), "level");
}

TEST(Fields, AbsentFieldsKeepTheirValues) {
  SampleConfig config;
  from_json(parse_json(R"({"lr": 1})", "test"), config, "test");
  EXPECT_EQ(config.lr, 1.0);
  EXPECT_EQ(config.num_heads, 8);
}

TEST(Fields, MisspeltKeySuggestsAName) {
  EXPECT_EQ(reading_error(R"({"shared_head": 1})"),
            "[config.json] unknown field `shared_head`, did you mean `shared_heads`?");
  EXPECT_EQ(reading_error(R"({"vocabulary": 1})"), "[config.json] unknown field `vocabulary`");
  SampleConfig config;
  EXPECT_NO_THROW(from_json(parse_json(R"({"shared_head": 1})", "test"), config, "test", false));
}

TEST(Fields, WrongTypesAreErrors) {
  EXPECT_EQ(reading_error(R"({"num_heads": "x"})"), "[config.json] field `num_heads` cannot be \"x\"");
  EXPECT_EQ(reading_error(R"({"num_heads": 8.5})"), "[config.json] field `num_heads` cannot be 8.5");
  EXPECT_EQ(reading_error(R"({"num_heads": true})"), "[config.json] field `num_heads` cannot be true");
  EXPECT_EQ(reading_error(R"({"num_heads": 9223372036854775808})"),
            "[config.json] field `num_heads` cannot be 9223372036854775808");
  EXPECT_EQ(reading_error(R"({"shared_heads": 5000000000})"),
            "[config.json] field `shared_heads` cannot be 5000000000");
  EXPECT_EQ(reading_error(R"({"level": -1})"), "[config.json] field `level` cannot be -1");
  EXPECT_EQ(reading_error(R"({"level": 256})"), "[config.json] field `level` cannot be 256");
  EXPECT_EQ(reading_error(R"({"lr": null})"), "[config.json] field `lr` cannot be null");
  EXPECT_EQ(reading_error(R"({"lr": false})"), "[config.json] field `lr` cannot be false");
  EXPECT_EQ(reading_error(R"({"causal": 1})"), "[config.json] field `causal` cannot be 1");
  EXPECT_EQ(reading_error(R"({"name": 3})"), "[config.json] field `name` cannot be 3");
  EXPECT_EQ(reading_error(R"({"top_k": [1, 2.5]})"), "[config.json] field `top_k` cannot be [1,2.5]");
  EXPECT_EQ(reading_error(R"({"top_k": {"a": 1}})"), "[config.json] field `top_k` cannot be {\"a\":1}");
  EXPECT_EQ(reading_error("[]"), "[config.json] expected an object, got array");
  EXPECT_EQ(reading_error(R"({"level": 255, "num_heads": -9223372036854775808, "lr": 2})"), "");
  // A value from elsewhere than parse_json may hold invalid UTF-8.
  SampleConfig config;
  EXPECT_EQ(error_of([&] {
              from_json(Json{{"lr", "\xff"}}, config, "flags");
            }),
            "[flags] field `lr` cannot be \"\\ufffd\"");
}

TEST(NearestName, ByEditDistance) {
  const std::vector<std::string> known = {"num_heads", "num_kv_heads", "lr", "seed"};
  EXPECT_EQ(nearest_name("num_head", known), "num_heads");
  EXPECT_EQ(nearest_name("num_kvheads", known), "num_kv_heads");
  EXPECT_EQ(nearest_name("numheads", known), "num_heads");
  EXPECT_EQ(nearest_name("lt", known), "lr");
  EXPECT_EQ(nearest_name("ab", known), "");
  EXPECT_EQ(nearest_name("seeed", known), "seed");
  EXPECT_EQ(nearest_name("", known), "");
  EXPECT_EQ(nearest_name("x", {}), "");
  EXPECT_EQ(nearest_name(std::string(10'000'000, 'x'), known), "");
}

std::string parse_error(const std::string& text, int max_depth = 64) {
  return error_of([&] { parse_json(text, "file", max_depth); });
}

TEST(ParseJson, ReadsEveryKindOfValue) {
  const std::string text =
      R"({"b":[1,-2,3.5,true,false,null,"x\u00e9\ud83d\ude42",[],{}],"a":{"c":18446744073709551615},"":0})";
  const Json json = parse_json(text, "test");
  EXPECT_EQ(json, Json::parse(text));
  EXPECT_EQ(json.begin().key(), "b") << "the order of keys is kept";
  EXPECT_EQ(json["b"][6], "xé🙂");
  EXPECT_EQ(parse_json(" 7 \n", "test"), 7);
}

TEST(ParseJson, SyntaxErrorsAreOneLineWithAPosition) {
  EXPECT_EQ(parse_error("{\"a\": 1,\n x}"),
            "[file] line 2, column 2: syntax error while parsing object key - invalid literal; last read: "
            "'1,<U+000A> x'; expected string literal");
  for (const char* text : {"", " ", "{", "[1", "{\"a\" 1}", "{} {}", "[1]]", "nul", "01", "1e999", "\"a", "\"\\x\"",
                           "'a'", "[1,]", "{\"a\":1,}", "// c\n1", "NaN", "\"\n\"", "\"\\ud800\""}) {
    const std::string error = parse_error(text);
    EXPECT_NE(error.find("[file] line "), std::string::npos) << text << " gave " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
  EXPECT_LT(parse_error("\"" + std::string(100'000, 'x')).size(), 300u);
}

TEST(ParseJson, RefusesInvalidUtf8AndNul) {
  EXPECT_NE(parse_error("{\"a\":\"\xff\"}"), "");
  EXPECT_NE(parse_error("{\"\xc3\":1}"), "");
  EXPECT_NE(parse_error("\"\xed\xa0\x80\""), "");  // a surrogate
  EXPECT_NE(parse_error("\"\xc0\x80\""), "");      // an overlong NUL
  for (const std::string text : {"{\"a\":\"\xff\"}", "\"\xe2\x82\""}) {
    for (const char c : parse_error(text)) EXPECT_TRUE(c >= ' ' && c <= '~');
  }
  // nlohmann alone stops at the NUL and accepts this.
  EXPECT_EQ(parse_error(std::string("{}\0garbage", 10)), "[file] line 1, column 3: a NUL byte");
}

TEST(ParseJson, BoundsTheDepth) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(parse_error(nested(64)), "");
  EXPECT_EQ(parse_error(nested(65)), "[file] line 1, column 66: nested deeper than 64 levels");
  EXPECT_EQ(parse_error("{\"a\":[{}]}", 3), "");
  EXPECT_NE(parse_error("{\"a\":[{}]}", 2), "");
  EXPECT_NE(parse_error(std::string(10'000'000, '[')), "");
}

TEST(ParseJson, RefusesRepeatedKeys) {
  EXPECT_NE(parse_error(R"({"a":1,"b":2,"a":3})").find("key `a` appears twice"), std::string::npos);
  EXPECT_NE(parse_error("{\"x\":[{\"k\":1,\n\"\\u006b\":2}]}").find("line 2"), std::string::npos);
  EXPECT_EQ(parse_error(R"({"a":{"a":[{"a":1},{"a":2}]},"b":{"a":1}})"), "");
}

TEST(ParseJson, LargeObjectsTakeLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":0";
  text += "}";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_json(text, "test").size(), 200'000u);
  // A quadratic reader needs minutes; this allows for sanitizers and a busy machine.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace moh
