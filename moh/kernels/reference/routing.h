// The routers in scalar float64, one token at a time, as the paper and the authors' code define them (spec, section 1):
// the oracle of the tensor forms in moh/ops/routing.cpp.
#pragma once

#include <cstdint>
#include <vector>

namespace moh::kernels::reference {

enum class GateForm { kPaper, kAuthors };

struct TokenRouting {
  std::vector<double> gates;          // one per head, shared first
  std::vector<std::int64_t> indices;  // chosen routed heads, best first
  std::vector<double> probabilities;  // softmax of the routed heads' scores
};

using Matrix = std::vector<std::vector<double>>;  // rows

// Ties go to the lower index.
std::vector<std::int64_t> top_k(const std::vector<double>& scores, std::int64_t count);

// x [C]; wg [E, C], wg_1 [shared, C] (used if shared > 1), wg_0 [2, C] (used if both kinds exist).
TokenRouting route_two_stage(const std::vector<double>& x, const Matrix& wg, const Matrix& wg_1, const Matrix& wg_0,
                             std::int64_t num_heads, std::int64_t shared_heads, std::int64_t top_k, GateForm form);

// query [H][D], before RoPE.
TokenRouting route_query_norm(const Matrix& query, std::int64_t shared_heads, std::int64_t top_k);

// Over the tokens of a batch; E routed heads.
double load_balance_loss(const std::vector<TokenRouting>& tokens, GateForm form);

}  // namespace moh::kernels::reference
