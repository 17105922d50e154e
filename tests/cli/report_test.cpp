// The report is one page without scripts or links, whatever text it is given, and with any part missing.
#include "cli/report/report.h"

#include <gtest/gtest.h>

#include <string>

namespace {

using moh::Json;
using moh::render_report;

std::string with_item(const char* item) {
  return render_report({{"title", "t"}, {"sections", {{{"items", Json::array({Json::parse(item)})}}}}});
}

TEST(Report, EscapesTextEverywhere) {
  const char* bad = "<script>&\"";
  const std::string page = render_report(
      {{"title", bad},
       {"subtitle", bad},
       {"summary", {bad}},
       {"facts", {{{"name", bad}, {"value", bad}}}},
       {"sections",
        {{{"heading", bad},
          {"text", bad},
          {"items",
           {{{"type", "code"}, {"text", bad}},
            {{"type", "table"}, {"columns", {bad}}, {"rows", {{bad}}}},
            {{"type", "lines"}, {"title", bad}, {"series", {{{"name", bad}, {"x", {1, 2}}, {"y", {1, 2}}}}}},
            {{"type", "bars"}, {"groups", {bad}}, {"series", {{{"name", bad}, {"values", {1}}}}}},
            {{"type", "heads"}, {"x", {bad}}, {"rows", {{{"name", bad}, {"shared", {true}}, {"note", bad}}}}},
            {{"type", "heatmap"}, {"x", {bad}}, {"y", {bad}}, {"values", {{0.5}}}}}}}}}});
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;&amp;&quot;"), std::string::npos);
}

TEST(Report, AnyPartMayBeMissing) {
  EXPECT_NE(render_report(Json::object()).find("</html>"), std::string::npos);
  for (const char* type : {"lines", "bars", "heatmap", "heads", "table", "text", "code"}) {
    EXPECT_NO_THROW(with_item((std::string("{\"type\":\"") + type + "\"}").c_str())) << type;
  }
  EXPECT_THROW(with_item(R"({"type": "pie"})"), moh::Error);
}

TEST(Report, SkipsWhatIsNoNumber) {
  const std::string page = with_item(
      R"({"type": "lines", "y_log": true, "series": [{"x": [1, 2, 3, null], "y": [0, null, 5, 6]}], "reference_lines": [7, {"y": null}]})");
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(page.find("inf"), std::string::npos);
  EXPECT_NE(page.find("<circle"), std::string::npos);
}

TEST(Report, EqualOrHugeValuesStillMakeAPlot) {
  for (const char* y : {"[1e300, 1e300]", "[3, 3]", "[0, 0]", "[1e17, 100000000000000016]"}) {
    const std::string page =
        with_item((R"({"type": "lines", "series": [{"x": [1, 2], "y": )" + std::string(y) + "}]}").c_str());
    EXPECT_NE(page.find("<polyline"), std::string::npos) << y;
    EXPECT_EQ(page.find("nan"), std::string::npos) << y;
  }
}

TEST(Report, LargeNumbersAreNoPowersOfTen) {
  const std::string page =
      with_item(R"({"type": "table", "columns": ["n"], "rows": [[614400], [1.5e6], [-123456.7], [999], [0.00012], [1234.5]]})");
  for (const char* shown : {">614,400<", ">1,500,000<", ">-123,457<", ">999<", ">0.00012<", ">1234.5<"}) {
    EXPECT_NE(page.find(shown), std::string::npos) << shown;
  }
}

TEST(Report, HeadsTellSharedFromRouted) {
  const std::string page = with_item(
      R"({"type": "heads", "x": ["0", "1", "2", "3"], "group": 2, "rows": [{"name": "0-3", "shared": [true, false, false, true], "note": "2 + 1 of 2"}]})");
  const auto count = [&](const std::string& text) {
    std::size_t found = 0;
    for (std::size_t at = page.find(text); at != std::string::npos; at = page.find(text, at + 1)) ++found;
    return found;
  };
  EXPECT_EQ(count(": shared, every token</title>"), 4U);  // two heads, on wide pages and on narrow ones
  EXPECT_EQ(count(": routed</title>"), 4U);
  EXPECT_NE(page.find("2 query heads share a KV head"), std::string::npos);
}

TEST(Report, LongSeriesAreThinned) {
  Json x = Json::array();
  for (int i = 0; i < 100000; ++i) x.push_back(i);
  const std::string page = with_item(Json({{"type", "lines"}, {"series", {{{"x", x}, {"y", x}}}}}).dump().c_str());
  EXPECT_LT(page.size(), 40000U);
}

}  // namespace
