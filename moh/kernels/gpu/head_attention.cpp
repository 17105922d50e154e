// Launches of head attention: triton/launch.py in C++.
#include <algorithm>

#include "moh/base/error.h"
#include "moh/kernels/gpu/backend.h"
#include "moh/kernels/gpu/call.h"

namespace moh::kernels::gpu {
namespace {

constexpr std::int64_t kNoWindow = 1 << 30;

// Sequences of a call as kernels see them.
struct Shape {
  std::int64_t count, longest, most_keys, group;
  bool in_pages;

  explicit Shape(const HeadAttentionParams& p)
      : count(p.num_sequences),
        longest(p.device_sequences.max_queries),
        most_keys(p.device_sequences.max_keys),
        group(p.num_heads / p.num_kv_heads),
        in_pages(p.device_sequences.table != nullptr) {
    if (in_pages || count == 0) return;
    longest = p.sequences[0].queries;
    most_keys = p.sequences[0].keys;
  }
  std::int64_t few() const { return std::min(kFewQueries, longest); }
};

std::string extra(const AttentionVariant& variant) {
  return std::string(variant.bias.data != nullptr ? "-bias" : "") + (variant.soft_cap > 0 ? "-soft_cap" : "");
}
std::string pages(const Shape& shape) { return shape.in_pages ? "-pages" : ""; }

// Names of the variants that a call launches beside the lists.
struct Names {
  std::string forward, decode, join, rows, keys;

  Names(const HeadAttentionParams& p, const Shape& shape) {
    const std::string suffix = extra(p.variant) + pages(shape);
    const auto name = [&](const char* kernel) { return variant_name(kernel, p.dtype, p.head_dim); };
    forward = name("attention_forward") + suffix;
    decode = name("attention_decode") + suffix;
    join = name("attention_join") + pages(shape);
    rows = name("attention_backward_rows") + suffix + (p.grad_bias.data != nullptr ? "-grad_bias" : "");
    keys = name("attention_backward_keys") + suffix;
  }
};

// Sequence n is batch n, and all are alike.
bool are_batches(const HeadAttentionParams& p) {
  for (std::int64_t n = 0; n < p.num_sequences; ++n) {
    const Sequence& s = p.sequences[n];
    if (s.batch != n || s.first_query != 0 || s.first_key != 0 || s.pages != nullptr ||
        s.queries != p.sequences[0].queries || s.keys != p.sequences[0].keys || s.queries != p.rows_per_batch)
      return false;
  }
  return true;
}

void set_common(Arguments& a, const HeadAttentionParams& p, const Shape& shape) {
  a.set("query", p.query.data);
  a.set("key", p.key.data);
  a.set("value", p.value.data);
  a.set("bias", p.variant.bias.data);
  a.set("gates", p.selection.gates);
  a.set("sequences", p.device_sequences.table);
  a.set_strides({"q_b", "q_t", "q_h", nullptr}, p.query);
  a.set_strides({"k_b", "k_s", "k_h", nullptr}, p.key);
  a.set_strides({"v_b", "v_s", "v_h", nullptr}, p.value);
  a.set_strides({"b_b", "b_h", "b_t", "b_s"}, p.variant.bias);
  a.set("queries", p.rows_per_batch);
  a.set("keys", shape.most_keys);
  a.set("total_rows", p.selection.num_rows);
  a.set("rows_per_batch", p.rows_per_batch);
  a.set("num_heads", p.num_heads);
  a.set("group", shape.group);
  a.set("head_dim", p.head_dim);
  const AttentionVariant& variant = p.variant;
  a.set("window", !variant.causal ? -1 : variant.window == 0 ? kNoWindow : std::min(variant.window, kNoWindow));
  a.set("scale", p.scale);
  a.set("soft_cap", variant.soft_cap);
}

RowLists lists_of(const HeadAttentionParams& p, const Shape& shape) {
  return RowLists(p.selection.gates, p.selection.num_rows, p.num_heads, shape.count, p.rows_per_batch, shape.longest,
                  p.device_sequences.table, p.stream);
}

}  // namespace

std::string attention_unsupported(const HeadAttentionParams& p, bool backward, int capability) {
  const Shape shape(p);
  if (!shape.in_pages && !are_batches(p)) return "unequal sequences must be described in the memory of the GPU";
  if (shape.in_pages && backward) return "sequences in pages have no gradients";
  if (p.variant.bias.data != nullptr && p.variant.bias_dtype != DType::kFloat32) return "the bias must be fp32";
  for (const auto& [what, tensor] : {std::pair("query", &p.query), {"key", &p.key}, {"value", &p.value}}) {
    if (std::string why = layout_reason(what, *tensor, p.dtype); !why.empty()) return why;
  }
  const Names names(p, shape);
  std::vector<std::string> wanted = {shape.in_pages ? "list_rows-pages" : "list_rows"};
  if (backward) {
    wanted.insert(wanted.end(), {names.rows, names.keys});
  } else {
    wanted.insert(wanted.end(), {names.forward, names.decode, names.join});
  }
  for (const std::string& variant : wanted) {
    if (std::string why = missing_kernel(variant, capability); !why.empty()) return why;
  }
  return "";
}

void head_attention_forward(const HeadAttentionParams& p) {
  const Shape shape(p);
  if (shape.count == 0 || shape.longest == 0 || p.num_heads == 0 || p.head_dim == 0) return;
  const Names names(p, shape);
  const Workspace unused_lse(p.lse == nullptr ? 4 * p.selection.num_rows * p.num_heads : 0, p.stream);
  Arguments a;
  set_common(a, p, shape);
  a.set("pages", p.device_sequences.pages);
  a.set("page_size", std::max<std::int64_t>(p.page_size, 1));
  a.set("out", p.out.data);
  a.set("lse", p.lse != nullptr ? p.lse : unused_lse.data());
  a.set_strides({"o_b", "o_t", "o_h", nullptr}, p.out);
  a.set("sink", p.variant.sink != nullptr ? p.variant.sink : p.selection.gates);  // not read if there are none
  a.set("sinks", p.variant.sink != nullptr ? p.num_heads : 0);
  a.set("few", shape.in_pages || shape.longest <= kFewQueries ? shape.few() : kFewQueries);

  if (shape.in_pages || shape.longest <= kFewQueries) {
    const Kernel &decode = kernel_for(names.decode), &join = kernel_for(names.join);
    const std::int64_t parts = std::max<std::int64_t>(1, blocks(shape.most_keys, decode.constant("SPLIT")));
    const std::int64_t results = shape.count * parts * shape.few() * p.num_heads;
    const Workspace partial(4 * results * p.head_dim, p.stream), stats(4 * results * 2, p.stream);
    Arguments own = a;
    own.set("parts", partial.data());
    own.set("stats", stats.data());
    own.set("num_parts", parts);
    const std::int64_t blocks_m = blocks(shape.few() * shape.group, decode.constant("BLOCK_M"));
    launch(decode, {parts, p.num_kv_heads * blocks_m, shape.count}, own, p.stream);
    launch(join, {shape.few(), p.num_heads, shape.count}, own, p.stream);
    if (shape.longest <= kFewQueries) return;
  }
  const RowLists lists = lists_of(p, shape);
  lists.add_to(a);
  const Kernel& forward = kernel_for(names.forward);
  launch(forward, {blocks(shape.longest, forward.constant("BLOCK_M")), p.num_heads, shape.count}, a, p.stream);
}

void head_attention_backward(const HeadAttentionParams& p) {
  const Shape shape(p);
  if (shape.count == 0 || p.num_heads == 0 || p.head_dim == 0) return;
  for (const auto& [what, tensor] : {std::pair("grad_out", &p.grad_out)}) {
    const std::string why = layout_reason(what, *tensor, p.dtype);
    MOH_CHECK(why.empty(), "[gpu] ", why);
  }
  const Names names(p, shape);
  const Workspace unused_gates(p.grad_gates == nullptr ? 4 * p.selection.num_rows * p.num_heads : 0, p.stream);
  const RowLists lists = lists_of(p, shape);
  Arguments a;
  set_common(a, p, shape);
  lists.add_to(a);
  a.set("lse", p.lse);
  a.set("grad_out", p.grad_out.data);
  a.set("grad_query", p.grad_query.data);
  a.set("grad_key", p.grad_key.data);
  a.set("grad_value", p.grad_value.data);
  a.set("grad_gates", p.grad_gates != nullptr ? p.grad_gates : unused_gates.data());
  a.set("grad_bias", p.grad_bias.data);
  a.set_strides({"g_b", "g_t", "g_h", nullptr}, p.grad_out);
  a.set_strides({"dq_b", "dq_t", "dq_h", nullptr}, p.grad_query);
  a.set_strides({"dk_b", "dk_s", "dk_h", nullptr}, p.grad_key);
  a.set_strides({"dv_b", "dv_s", "dv_h", nullptr}, p.grad_value);
  a.set_strides({"db_b", "db_h", "db_t"}, p.grad_bias);
  const Kernel &rows = kernel_for(names.rows), &keys = kernel_for(names.keys);
  launch(rows, {blocks(shape.longest, rows.constant("BLOCK_M")), p.num_heads, shape.count}, a, p.stream);
  launch(keys, {blocks(shape.most_keys, keys.constant("BLOCK_N")), p.num_kv_heads, shape.count}, a, p.stream);
}

}  // namespace moh::kernels::gpu
