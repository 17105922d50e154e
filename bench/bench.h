// Benchmarks of `moh bench`: one file a subject. A case checks its result against a reference first, then times moh and
// a named rival alternately in one process; the ratio is the median of the ratios of neighbouring runs, so that a
// machine that slows down for a while slows both. Every row also says what the machine allows: how near moh comes to
// the GEMM rate and to the memory bandwidth measured in the same run, and what the ratio would be if both sides ran at
// these limits.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bench/row.h"

namespace moh::bench {

// Values of every axis; the cases are their product. In the defaults of a subject an empty list is an axis that the
// subject does not have; in what a user gives, an empty list takes the subject's default.
struct Grid {
  std::vector<std::int64_t> threads, heads, kv_heads, head_dim, hidden, batch, queries, tokens;
  std::vector<std::string> preset, dtype, direction, router, select, layout, causal, rival;
  std::vector<double> activated;

  template <class V>
  void fields(V& visit) {
    visit("threads", threads, "CPU threads (default: all cores)");
    visit("preset", preset, "models; see `moh info`");
    visit("dtype", dtype, "fp32, bf16, fp16");
    visit("direction", direction, "forward; backward alone; both: forward and backward");
    visit("router", router, "two-stage (trained) or norm (parameter-free)");
    visit("heads", heads, "query heads");
    visit("kv_heads", kv_heads, "key/value heads (default: as many as heads)");
    visit("head_dim", head_dim, "head size");
    visit("hidden", hidden, "hidden size");
    visit("batch", batch, "sequences");
    visit("queries", queries, "new tokens of each sequence");
    visit("causal", causal, "yes, no");
    visit("select", select,
          "what tokens choose at random: single heads (head) or whole groups of one KV head (kv-group)");
    visit("layout", layout, "moh's KV cache: head [B, Hkv, S, D], as models keep it, or token [B, S, Hkv, D]");
    visit("tokens", tokens, "tokens of a sequence; decode: tokens in the KV cache");
    visit("activated", activated, "share of heads that a token uses");
    visit("rival", rival, "see the list below");
  }
};

// One combination.
struct Case {
  std::int64_t threads = 1, heads = 1, kv_heads = 0, head_dim = 1, hidden = 0, batch = 1, queries = 1, tokens = 1;
  std::string preset, dtype = "fp32", direction = "forward", router, select = "head", layout, causal = "yes", rival;
  double activated = 1;

  bool is_causal() const { return causal == "yes"; }
  bool has_backward() const { return direction != "forward"; }
};

struct Options {
  double seconds = 1.0;    // spent on timing each case
  std::int64_t pairs = 5;  // timed pairs at least
  std::uint64_t seed = 0;
  at::Device device = at::kCPU;
};

struct Subject {
  const char* name;
  const char* summary;
  Grid defaults;
  std::vector<std::string> rivals;  // the names that --rival takes
  // Checks the result (an Error says what is wrong), then times; the row of the case.
  Row (*run)(const Case& c, const Options& options);
  std::vector<std::string> columns;  // of the printed table, names of bench/table.cpp
};

// attention, decode: they need operators alone.
const std::vector<Subject>& operator_subjects();
// These and layer, prefill, train, vit, dit.
const std::vector<Subject>& subjects();

// Names of columns as Subject holds them, from words.
std::vector<std::string> columns(const std::string& words);

// Every combination of what the user gave and, where nothing was given, of the subject's defaults; the rival changes
// fastest. Errors: an axis that the subject does not have, a value out of range; the message names the flag.
std::vector<Case> make_cases(const Subject& subject, const Grid& given);

Row run_attention(const Case& c, const Options& options);
Row run_decode(const Case& c, const Options& options);
Row run_layer(const Case& c, const Options& options);
Row run_prefill(const Case& c, const Options& options);
Row run_train(const Case& c, const Options& options);
Row run_vit(const Case& c, const Options& options);
Row run_dit(const Case& c, const Options& options);

}  // namespace moh::bench
