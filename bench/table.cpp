#include "bench/table.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cmath>
#include <ctime>
#include <functional>
#include <map>

#include "moh/base/error.h"

namespace moh::bench {
namespace {

struct Column {
  std::string title;
  std::size_t width;
  std::function<std::string(const Json&)> cell;
};

std::function<std::string(const Json&)> number(const char* key, int digits) {
  return [key, digits](const Json& row) { return fmt::format("{:.{}f}", row.at(key).get<double>(), digits); };
}
std::function<std::string(const Json&)> percent(const char* key) {
  return [key](const Json& row) {
    const auto found = row.find(key);
    return found == row.end() ? "-" : fmt::format("{:.0f} %", 100 * found->get<double>());
  };
}
std::function<std::string(const Json&)> plain(const char* key) {
  return [key](const Json& row) {
    const auto found = row.find(key);
    if (found == row.end()) return std::string("-");
    return found->is_string() ? found->get<std::string>() : found->dump();
  };
}

const Column& column_of(const std::string& name) {
  static const std::map<std::string, Column> columns = {
      {"direction", {"direction", 9, plain("direction")}},
      {"preset", {"model", 10, plain("preset")}},
      {"router", {"router", 9, plain("router")}},
      {"dtype", {"dtype", 5, plain("dtype")}},
      {"batch", {"batch", 5, plain("batch")}},
      {"heads",
       {"heads", 6,
        [](const Json& row) {
          return fmt::format("{}/{}", row.at("heads").get<std::int64_t>(), row.at("kv_heads").get<std::int64_t>());
        }}},
      {"head_dim", {"dim", 4, plain("head_dim")}},
      {"hidden", {"hidden", 6, plain("hidden")}},
      {"queries", {"queries", 7, plain("queries")}},
      {"layout", {"layout", 6, plain("layout")}},
      {"select", {"select", 8, plain("select")}},
      {"causal", {"causal", 6, [](const Json& row) { return row.at("causal").get<bool>() ? "yes" : "no"; }}},
      {"tokens", {"tokens", 6, plain("tokens")}},
      {"threads", {"threads", 7, plain("threads")}},
      {"activated", {"active", 6, number("activated", 2)}},
      {"requested", {"active", 6, number("requested", 2)}},
      {"images_per_second", {"images/s", 8, number("images_per_second", 1)}},
      {"moh_ms", {"moh ms", 9, number("moh_ms", 3)}},
      {"rival", {"rival", 12, plain("rival")}},
      {"rival_ms", {"rival ms", 9, number("rival_ms", 3)}},
      {"ratio", {"ratio", 6, number("ratio", 3)}},
      {"quartiles",
       {"quartiles", 11,
        [](const Json& row) {
          return fmt::format("{:.2f}-{:.2f}", row.at("ratio_low").get<double>(), row.at("ratio_high").get<double>());
        }}},
      {"ideal_ratio", {"ideal", 6, number("ideal_ratio", 3)}},
      {"gflops", {"GFLOP/s", 8, number("gflops", 0)}},
      {"gemm_share", {"of GEMM", 7, percent("gemm_share")}},
      {"rival_gemm_share", {"rival's", 7, percent("rival_gemm_share")}},
      {"bandwidth_share", {"of read", 7, percent("bandwidth_share")}},
      {"rival_bandwidth_share", {"rival's", 7, percent("rival_bandwidth_share")}},
      {"limit_share", {"of limit", 8, percent("limit_share")}},
      {"attention_time_share", {"attn time", 9, percent("attention_time_share")}},
      {"attention_flops_share", {"attn FLOPs", 10, percent("attention_flops_share")}},
      {"backend", {"kernels", 12, plain("backend")}},
      {"projections", {"projections", 11, plain("projections")}},
      {"router_share",
       {"router", 6,
        [](const Json& row) { return fmt::format("{:.1f} %", 100 * row.at("router_share").get<double>()); }}},
      {"max_abs_error",
       {"error", 8, [](const Json& row) { return fmt::format("{:.1e}", row.at("max_abs_error").get<double>()); }}},
      {"cases", {"cases", 5, plain("cases")}},
      {"mean_ratio", {"geometric mean", 14, number("mean_ratio", 3)}},
      {"worst_ratio", {"worst", 6, number("worst_ratio", 3)}},
      {"worst_case", {"worst case", 10, plain("worst_case")}},
      {"mean_skipping",
       {"beside all heads", 16,
        [](const Json& row) {
          return row.contains("mean_skipping") ? fmt::format("{:.3f}", row["mean_skipping"].get<double>()) : "-";
        }}},
      {"mean_ideal", {"ideal", 6, number("mean_ideal", 3)}},
      {"kv_group", {"heads per KV", 12, plain("kv_group")}},
  };
  const auto found = columns.find(name);
  MOH_CHECK(found != columns.end(), "[bench] the table has no column `", name, "`");
  return found->second;
}

// Values that rows of one summary share. Tokens count for whole models alone.
std::vector<std::string> summary_keys(const Json& row) {
  std::vector<std::string> keys = {"subject", "preset", "router",  "direction", "dtype", "causal",
                                   "select",  "layout", "queries", "kv_group",  "rival", "requested"};
  if (row.contains("preset")) keys.emplace_back("tokens");
  return keys;
}

// What a row has in common with the same case at another share of the heads.
std::string case_without_share(const Json& row) {
  Json key = Json::object();
  for (std::string& name : summary_keys(row)) {
    if (name != "requested" && name != "kv_group" && row.contains(name)) key[name] = row[name];
  }
  for (const char* name : {"tokens", "heads", "kv_heads", "head_dim", "batch", "threads"}) key[name] = row.at(name);
  return key.dump();
}

std::string shape_of(const Json& row) {
  return fmt::format("{} tokens, {} x {}, batch {}, {} threads", row.at("tokens").get<std::int64_t>(),
                     row.at("heads").get<std::int64_t>(), row.at("head_dim").get<std::int64_t>(),
                     row.at("batch").get<std::int64_t>(), row.at("threads").get<std::int64_t>());
}

}  // namespace

Json json_of(const Row& row) {
  Json json = Json::object();
  for (const auto& [name, value] : row.values()) {
    std::visit([&json, &name = name](const auto& each) { json[name] = each; }, value);
  }
  return json;
}

std::string text_header(const std::vector<std::string>& columns) {
  std::string line;
  for (const std::string& name : columns) line += fmt::format("{:>{}} ", column_of(name).title, column_of(name).width);
  return line;
}

std::string text_row(const std::vector<std::string>& columns, const Json& row) {
  std::string line;
  for (const std::string& name : columns)
    line += fmt::format("{:>{}} ", column_of(name).cell(row), column_of(name).width);
  return line;
}

std::string markdown_table(const std::vector<std::string>& columns, const std::vector<Json>& rows) {
  std::string text = "|", rule = "|";
  for (const std::string& name : columns) {
    text += " " + column_of(name).title + " |";
    rule += "---|";
  }
  text += "\n" + rule + "\n";
  for (const Json& row : rows) {
    text += "|";
    for (const std::string& name : columns) text.append(" ").append(column_of(name).cell(row)).append(" |");
    text += "\n";
  }
  return text;
}

std::vector<Json> summarise(const std::vector<Json>& rows) {
  std::vector<std::pair<Json, std::vector<Json>>> groups;
  std::map<std::string, double> with_all_heads;  // moh's milliseconds
  for (const Json& row : rows) {
    if (row.at("requested") == 1.0) with_all_heads[case_without_share(row)] = row.at("moh_ms").get<double>();
  }
  for (Json row : rows) {
    row["kv_group"] = row.at("heads").get<std::int64_t>() / row.at("kv_heads").get<std::int64_t>();
    Json key = Json::object();
    for (const std::string& name : summary_keys(row)) {
      if (row.contains(name)) key[name] = row[name];
    }
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& each) { return each.first == key; });
    if (group == groups.end()) {
      groups.emplace_back(key, std::vector<Json>());
      group = groups.end() - 1;
    }
    group->second.push_back(row);
  }
  std::vector<Json> summaries;
  for (auto& [summary, members] : groups) {
    double log_ratio = 0, log_ideal = 0, log_skipping = 0, worst = 0;
    std::size_t compared = 0;
    for (const Json& row : members) {
      if (const auto all = with_all_heads.find(case_without_share(row)); all != with_all_heads.end()) {
        log_skipping += std::log(row.at("moh_ms").get<double>() / all->second);
        ++compared;
      }
      const double ratio = row.at("ratio").get<double>();
      log_ratio += std::log(ratio);
      log_ideal += std::log(row.at("ideal_ratio").get<double>());
      if (ratio <= worst) continue;
      worst = ratio;
      summary["worst_case"] = shape_of(row);
    }
    const auto count = static_cast<double>(members.size());
    summary["cases"] = members.size();
    summary["mean_ratio"] = std::exp(log_ratio / count);
    summary["worst_ratio"] = worst;
    summary["mean_ideal"] = std::exp(log_ideal / count);
    if (compared == members.size()) summary["mean_skipping"] = std::exp(log_skipping / count);
    summaries.push_back(summary);
  }
  return summaries;
}

std::vector<std::string> summary_columns(const std::vector<Json>& summaries) {
  std::vector<std::string> columns;
  for (const char* name : {"direction", "dtype", "rival", "preset", "tokens", "router", "causal", "kv_group", "select",
                           "queries", "layout"}) {
    bool varies = columns.size() < 3;  // the first three always
    for (const Json& summary : summaries) varies |= summary.contains(name) && summary[name] != summaries[0][name];
    if (varies) columns.emplace_back(name);
  }
  for (const char* name :
       {"requested", "cases", "mean_ratio", "mean_skipping", "worst_ratio", "mean_ideal", "worst_case"}) {
    columns.emplace_back(name);
  }
  return columns;
}

std::string markdown_report(const std::string& command, const Json& machine, const std::vector<std::string>& columns,
                            const std::vector<Json>& rows, bool with_title) {
  const std::string subject = rows.at(0).at("subject").get<std::string>();
  const std::time_t now = std::time(nullptr);
  std::string text;
  if (with_title) {
    text += fmt::format("# moh bench {}, {}, {} cores, {:%B %Y}\n\n", subject, machine["cpu"].get<std::string>(),
                        machine["cores"].get<int>(), fmt::gmtime(now));
    text += fmt::format(
        "CPU family {} model {}, last cache {:.0f} MiB, {:.0f} GiB of memory; torch {} ({}), {}. Ratio is time of moh / "
        "time of the rival, median of alternated pairs, with quartiles. Ideal is that ratio if both sides ran at the "
        "limits measured here, by operations and bytes.\n\n",
        machine["cpu_family"].get<std::string>(), machine["cpu_model"].get<std::string>(),
        machine["last_cache_mib"].get<double>(), machine["memory_gib"].get<double>(),
        machine["torch"].get<std::string>(), machine["torch_cpu_capability"].get<std::string>(),
        machine["compiler"].get<std::string>());
  } else {
    text += "\n";
  }
  text += fmt::format("```\n{}\n```\n\n", command);
  text += fmt::format(
      "Limits, measured {:%Y-%m-%d}:\n\n| dtype | threads | GEMM GFLOP/s | multiply-adds GFLOP/s | read "
      "GB/s | copy GB/s |\n|---|---|---|---|---|---|\n",
      fmt::gmtime(now));
  std::vector<std::pair<std::string, std::int64_t>> seen;
  for (const Json& row : rows) {
    const std::pair<std::string, std::int64_t> key = {row.at("dtype").get<std::string>(),
                                                      row.at("threads").get<std::int64_t>()};
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
    seen.push_back(key);
    text += fmt::format("| {} | {} | {:.0f} | {:.0f} | {:.1f} | {:.1f} |\n", key.first, key.second,
                        row.at("gemm_peak_gflops").get<double>(), row.at("fma_peak_gflops").get<double>(),
                        row.at("read_gbs").get<double>(), row.at("copy_gbs").get<double>());
  }
  const std::vector<Json> summaries = summarise(rows);
  return text + "\nGeometric means:\n\n" + markdown_table(summary_columns(summaries), summaries) + "\nEvery case:\n\n" +
         markdown_table(columns, rows);
}

}  // namespace moh::bench
