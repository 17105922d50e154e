// moh bench SUBJECT: speed beside a named rival in the same process, results checked first.
#include "bench/bench.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"

namespace moh::cli {
namespace {

template <class T>
void add_list(CLI::App& app, const std::string& flag, std::vector<T>& values, const std::string& help) {
  app.add_option(flag, values, help)->delimiter(',')->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

int bench_attention(const Context& context, bench::Grid grid) {
  grid.seed = context.seed;
  bool first = true;
  const auto emit = [&](const Json& row) {
    context.emit(row);
    if (first) {
      context.say(fmt::format(
          "{:<9} {:<5} {:>5} {:>7} {:>4} {:>6} {:>6} {:>7} {:>7} {:>9} {:>9} {:>6} {:>11} {:>6} {:>8} {:>8}",
          "direction", "dtype", "batch", "heads", "dim", "tokens", "causal", "active", "threads", "moh ms", "rival ms",
          "ratio", "quartiles", "effic.", "GFLOP/s", "error"));
      first = false;
    }
    context.say(fmt::format(
        "{:<9} {:<5} {:>5} {:>7} {:>4} {:>6} {:>6} {:>7.2f} {:>7} {:>9.3f} {:>9.3f} {:>6.3f} {:>5.2f}-{:<5.2f} {:>6.2f} {:>8.0f} {:>8.1e}",
        row["direction"].get<std::string>(), row["dtype"].get<std::string>(), row["batch"].get<std::int64_t>(),
        fmt::format("{}/{}", row["heads"].get<std::int64_t>(), row["kv_heads"].get<std::int64_t>()),
        row["head_dim"].get<std::int64_t>(), row["tokens"].get<std::int64_t>(),
        row["causal"].get<bool>() ? "yes" : "no", row["activated"].get<double>(), row["threads"].get<int>(),
        row["moh_ms"].get<double>(), row["rival_ms"].get<double>(), row["ratio"].get<double>(),
        row["ratio_low"].get<double>(), row["ratio_high"].get<double>(), row["efficiency"].get<double>(),
        row["gflops"].get<double>(), row["max_abs_error"].get<double>()));
  };
  bench::bench_attention(grid, emit, [] { return interrupted.load(); });
  return interrupted ? kInterruptedStatus : 0;
}

const Registered registered{
    {"bench", "measure speed beside a rival in the same process", [](CLI::App& app, Context& context) -> Run {
       auto grid = std::make_shared<bench::Grid>();
       auto subject = std::make_shared<std::string>();
       app.add_option("subject", *subject, "attention")->required()->check(CLI::IsMember({"attention"}));
       add_list(app, "--heads", grid->heads, "query heads");
       add_list(app, "--kv-heads", grid->kv_heads, "key/value heads (default: as many as heads)");
       add_list(app, "--head-dim", grid->head_dim, "head size");
       add_list(app, "--tokens", grid->tokens, "tokens");
       add_list(app, "--batch", grid->batch, "sequences");
       add_list(app, "--activated", grid->activated, "share of heads that a token uses, chosen at random");
       add_list(app, "--causal", grid->causal, "yes, no");
       add_list(app, "--dtype", grid->dtype, "fp32, bf16, fp16");
       add_list(app, "--threads", grid->threads, "CPU threads (default: all cores)");
       add_list(app, "--direction", grid->direction, "forward; both: forward and backward");
       add_list(app, "--rival", grid->rival,
                "torch_sdpa; authors_form: every head computed, then multiplied by its gate");
       app.add_option("--seconds", grid->seconds, "time for each case");
       return [grid, subject, &context] { return bench_attention(context, *grid); };
     }}};

}  // namespace
}  // namespace moh::cli
