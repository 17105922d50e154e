// Attention of one KV head and its query heads by the formula, in float64, a block of rows at a time, and the check
// that every benchmark passes before it is timed.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace moh::bench {

struct AttentionReference {
  at::Tensor out;                               // [B, T, H, D]
  at::Tensor grad_query, grad_key, grad_value;  // of sum(out * grad_out); undefined without grad_out
};

// query [B, T, H, D], key and value [B, S, Hkv, D], gates [B, T, H], grad_out like query or undefined; computed for KV
// head `kv_head` and its H / Hkv query heads alone, which are the heads of the results. Causal: token t sees
// s <= t + S - T. Scale 1 / sqrt(D).
AttentionReference attention_reference(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                       const at::Tensor& gates, bool causal, const at::Tensor& grad_out,
                                       std::int64_t kv_head);

// The slice [..., first : first + count, :] of heads, dimension 2, in float64.
at::Tensor heads_of(const at::Tensor& tensor, std::int64_t first, std::int64_t count);

// Largest absolute difference. Error if it is above `tolerance` times the largest expected value (at least 1), or not a
// number: names `what`, the place, both values.
double check_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance, const std::string& what);

// What rounding of the dtype explains.
double tolerance_of(at::ScalarType dtype);

}  // namespace moh::bench
