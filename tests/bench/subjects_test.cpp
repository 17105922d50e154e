// Grids of cases, timing, and what is printed of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <thread>

#include "bench/bench.h"
#include "bench/machine.h"
#include "bench/table.h"
#include "bench/timing.h"
#include "moh/base/error.h"

namespace moh::bench {
namespace {

const Subject& subject_named(const std::string& name) {
  for (const Subject& subject : subjects()) {
    if (subject.name == name) return subject;
  }
  throw std::runtime_error("no subject " + name);
}

std::string refusal(const std::string& subject, const Grid& grid) {
  try {
    make_cases(subject_named(subject), grid);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(BenchCases, AreTheProductOfWhatIsGivenAndDefaults) {
  Grid grid;
  grid.heads = {8, 16};
  grid.tokens = {7, 9, 11};
  grid.threads = {1};
  grid.activated = {0.5};
  grid.rival = {"torch_sdpa", "authors_form"};
  const auto cases = make_cases(subject_named("attention"), grid);
  ASSERT_EQ(cases.size(), 2 * 3 * 2);
  std::set<std::tuple<std::int64_t, std::int64_t, std::string>> seen;
  for (const Case& c : cases) {
    seen.emplace(c.heads, c.tokens, c.rival);
    EXPECT_EQ(c.kv_heads, c.heads);
    EXPECT_EQ(c.head_dim, 64);
  }
  EXPECT_EQ(seen.size(), cases.size());
  EXPECT_EQ(cases[0].tokens, cases[1].tokens);  // rivals of one case are neighbours
}

TEST(BenchCases, RefuseWhatASubjectDoesNotHave) {
  Grid grid;
  grid.queries = {2};
  EXPECT_NE(refusal("attention", grid).find("attention has no --queries"), std::string::npos);
  EXPECT_EQ(refusal("decode", grid), "");
  grid = {};
  grid.rival = {"nobody"};
  EXPECT_NE(refusal("decode", grid).find("torch_sdpa, torch_matmul"), std::string::npos);
  grid = {};
  grid.activated = {1.5};
  EXPECT_NE(refusal("attention", grid).find("--activated"), std::string::npos);
  grid = {};
  grid.kv_heads = {5};
  EXPECT_NE(refusal("attention", grid).find("--kv-heads 5"), std::string::npos);
  grid = {};
  grid.dtype = {"fp8"};
  EXPECT_NE(refusal("attention", grid).find("fp8"), std::string::npos);
}

TEST(BenchTiming, RatioIsThatOfTheSides) {
  const auto sleep = [](int ms) { return [ms] { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }; };
  const Timing timing = time_pair(sleep(4), sleep(16), 0.0, 5);
  EXPECT_EQ(timing.pairs, 5);
  EXPECT_GE(timing.moh_ms, 4);
  EXPECT_GE(timing.rival_ms, 16);
  EXPECT_LT(timing.ratio, 0.9);
  EXPECT_EQ(fastest({{"slow", sleep(30)}, {"fast", sleep(1)}}).name, "fast");
}

Json row_of(std::int64_t tokens, double share, double ratio) {
  return {{"subject", "attention"},
          {"direction", "forward"},
          {"dtype", "fp32"},
          {"batch", 1},
          {"heads", 8},
          {"kv_heads", 8},
          {"head_dim", 64},
          {"tokens", tokens},
          {"causal", true},
          {"threads", 2},
          {"rival", "torch_sdpa"},
          {"requested", share},
          {"activated", share},
          {"ratio", ratio},
          {"ideal_ratio", share},
          {"moh_ms", ratio * tokens},
          {"rival_ms", tokens},
          {"gemm_peak_gflops", 1},
          {"fma_peak_gflops", 1},
          {"read_gbs", 1},
          {"copy_gbs", 1}};
}

TEST(BenchSummary, GeometricMeanAndWorstPerShare) {
  const auto rows = std::vector<Json>{row_of(256, 1.0, 0.9), row_of(256, 0.5, 0.2), row_of(512, 1.0, 0.4),
                                      row_of(512, 0.5, 0.8), row_of(1024, 0.5, 0.4)};
  const auto summaries = summarise(rows);
  ASSERT_EQ(summaries.size(), 2);
  EXPECT_EQ(summaries[0]["cases"], 2);
  EXPECT_NEAR(summaries[0]["mean_ratio"].get<double>(), std::sqrt(0.36), 1e-12);
  EXPECT_EQ(summaries[0]["worst_ratio"], 0.9);
  EXPECT_NEAR(summaries[1]["mean_ratio"].get<double>(), 0.4, 1e-12);
  EXPECT_EQ(summaries[1]["worst_case"], "512 tokens, 8 x 64, batch 1, 2 threads");
  // What skipping alone gives, where all of the cases ran with all heads too.
  EXPECT_NEAR(summaries[0]["mean_skipping"].get<double>(), 1, 1e-12);
  EXPECT_FALSE(summaries[1].contains("mean_skipping"));
  EXPECT_NEAR(summarise({rows[0], rows[1], rows[2], rows[3]})[1]["mean_skipping"].get<double>(),
              std::sqrt(0.2 / 0.9 * 0.8 / 0.4), 1e-12);
  const auto columns = summary_columns(summaries);
  EXPECT_EQ(std::count(columns.begin(), columns.end(), "causal"), 0);
  Json full = row_of(256, 1.0, 0.9);
  full["causal"] = false;
  const auto both = summary_columns(summarise({rows[0], full}));
  EXPECT_EQ(std::count(both.begin(), both.end(), "causal"), 1);
}

TEST(BenchTable, EveryColumnOfEverySubjectIsKnown) {
  for (const Subject& subject : subjects()) EXPECT_NO_THROW(text_header(subject.columns)) << subject.name;
  EXPECT_NO_THROW(text_header(summary_columns(summarise({row_of(256, 1.0, 0.9)}))));
  EXPECT_THROW(text_header({"nothing"}), Error);
  const std::string table = markdown_table({"tokens", "ratio"}, {row_of(256, 1.0, 0.9)});
  EXPECT_EQ(table, "| tokens | ratio |\n|---|---|\n| 256 | 0.900 |\n");
}

TEST(BenchTable, ReportHoldsCommandMachineAndLimits) {
  const Json machine = json_of(machine_description());
  const std::string text = markdown_report("moh bench attention --tokens 256", machine, {"tokens", "ratio"},
                                           {row_of(256, 1.0, 0.9)}, /*with_title=*/true);
  for (const std::string& part : {std::string("# moh bench attention, "), machine["cpu"].get<std::string>(),
                                  std::string("moh bench attention --tokens 256"), std::string("| fp32 | 2 | 1 |"),
                                  std::string("| 256 | 0.900 |")}) {
    EXPECT_NE(text.find(part), std::string::npos) << part;
  }
}

TEST(BenchMachine, LimitsAreMeasuredOnceAndPlausible) {
  const Limits& limits = machine_limits("fp32", 0.02);
  EXPECT_GT(limits.gemm_gflops, 0.5);
  EXPECT_GT(limits.read_gbs, 0.1);
  EXPECT_GT(limits.copy_gbs, 0.1);
  EXPECT_EQ(&limits, &machine_limits("fp32", 0.02));
}

}  // namespace
}  // namespace moh::bench
