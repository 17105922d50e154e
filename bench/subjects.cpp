// The list of subjects and the product of their axes.
#include <ATen/Parallel.h>

#include <algorithm>
#include <iterator>
#include <sstream>

#include "bench/bench.h"
#include "moh/base/error.h"
#include "moh/ops/autocast.h"

namespace moh::bench {
namespace {

Grid attention_defaults() {
  Grid grid;
  grid.threads = {0};
  grid.dtype = {"fp32"};
  grid.direction = {"forward"};
  grid.heads = {32};
  grid.kv_heads = {0};
  grid.head_dim = {64};
  grid.batch = {1};
  grid.causal = {"yes"};
  grid.select = {"head"};
  grid.tokens = {256, 1024};
  grid.activated = {1.0, 0.75, 0.5};
  grid.rival = {"torch_sdpa"};
  return grid;
}

Grid decode_defaults() {
  Grid grid = attention_defaults();
  grid.direction = {};
  grid.causal = {};
  grid.queries = {1};
  grid.layout = {"head"};
  grid.tokens = {1024, 8192, 32768};
  grid.rival = {"torch_sdpa", "torch_matmul"};
  return grid;
}

template <class T>
void expand(std::vector<Case>& cases, const std::vector<T>& values, T Case::*member) {
  if (values.empty()) return;
  std::vector<Case> product;
  for (const Case& c : cases) {
    for (const T& value : values) {
      product.push_back(c);
      product.back().*member = value;
    }
  }
  cases = std::move(product);
}

std::string flag_of(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

// Values of the user where there are any, else the subject's.
Grid merged(const Subject& subject, const Grid& given) {
  Grid grid = subject.defaults, wanted = given;
  auto visit_default = [&](const char* name, auto& defaults, const char*) {
    auto visit_given = [&](const char* other, auto& values, const char*) {
      if constexpr (std::is_same_v<decltype(values), decltype(defaults)>) {
        if (std::string_view(name) != other || values.empty()) return;
        MOH_CHECK(!defaults.empty(), "[bench] ", subject.name, " has no ", flag_of(name));
        defaults = values;
      }
    };
    wanted.fields(visit_given);
  };
  grid.fields(visit_default);
  return grid;
}

void check_one_of(const char* flag, const std::string& value, const std::vector<std::string>& allowed) {
  std::string known;
  for (const std::string& name : allowed) {
    if (name == value) return;
    known += (known.empty() ? "" : ", ") + name;
  }
  fail("[bench] ", flag, " must be one of ", known, "; got `", value, "`");
}

void check_case(const Case& c) {
  MOH_CHECK(
      c.threads > 0 && c.heads > 0 && c.head_dim > 0 && c.batch > 0 && c.queries > 0 && c.tokens > 0 && c.hidden >= 0,
      "[bench] --threads, --heads, --head-dim, --hidden, --batch, --queries and --tokens must be positive");
  MOH_CHECK(c.kv_heads > 0 && c.heads % c.kv_heads == 0, "[bench] --kv-heads ", c.kv_heads, " must divide --heads ",
            c.heads);
  MOH_CHECK(c.activated > 0 && c.activated <= 1, "[bench] --activated must be in (0, 1], got ", c.activated);
  ops::autocast_type(c.dtype);
  check_one_of("--causal", c.causal, {"yes", "no"});
  check_one_of("--direction", c.direction, {"forward", "backward", "both"});
  check_one_of("--select", c.select, {"head", "kv-group"});
  if (!c.layout.empty()) check_one_of("--layout", c.layout, {"token", "head"});
  if (!c.router.empty()) check_one_of("--router", c.router, {"two-stage", "norm"});
}

}  // namespace

// clang-format off
const std::vector<Subject>& operator_subjects() {
  const std::string timing = "moh_ms rival rival_ms ratio quartiles ideal_ratio ", shares = "gemm_share rival_gemm_share ";
  static const std::vector<Subject> all = {
      {"attention", "the operator alone; rivals torch_sdpa, authors_form", attention_defaults(),
       {"torch_sdpa", "authors_form"}, run_attention,
       columns("direction dtype batch heads head_dim causal tokens threads activated " + timing + "gflops " + shares +
             "backend max_abs_error")},
      {"decode", "new tokens against a KV cache; rivals torch_sdpa, torch_matmul", decode_defaults(),
       {"torch_sdpa", "torch_matmul"}, run_decode,
       columns("dtype batch heads head_dim queries tokens layout threads activated " + timing +
             "bandwidth_share rival_bandwidth_share max_abs_error")},
  };
  return all;
}
// clang-format on

std::vector<std::string> columns(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

std::vector<Case> make_cases(const Subject& subject, const Grid& given) {
  const Grid grid = merged(subject, given);
  for (const std::string& rival : grid.rival) check_one_of("--rival", rival, subject.rivals);
  std::vector<Case> cases(1);
  expand(cases, grid.threads, &Case::threads);
  expand(cases, grid.preset, &Case::preset);
  expand(cases, grid.router, &Case::router);
  expand(cases, grid.dtype, &Case::dtype);
  expand(cases, grid.direction, &Case::direction);
  expand(cases, grid.heads, &Case::heads);
  expand(cases, grid.kv_heads, &Case::kv_heads);
  expand(cases, grid.head_dim, &Case::head_dim);
  expand(cases, grid.hidden, &Case::hidden);
  expand(cases, grid.batch, &Case::batch);
  expand(cases, grid.queries, &Case::queries);
  expand(cases, grid.layout, &Case::layout);
  expand(cases, grid.causal, &Case::causal);
  expand(cases, grid.select, &Case::select);
  expand(cases, grid.tokens, &Case::tokens);
  expand(cases, grid.activated, &Case::activated);
  expand(cases, grid.rival, &Case::rival);
  for (Case& c : cases) {
    if (c.threads == 0) c.threads = at::get_num_threads();
    if (c.kv_heads == 0) c.kv_heads = c.heads;
    check_case(c);
  }
  return cases;
}

}  // namespace moh::bench
