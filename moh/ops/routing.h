// Routers: which heads a token uses and with what gate. Composite LibTorch forms (any device and dtype) around one
// kernel, the Top-K selection. Scores are computed in fp32 (fp64 for fp64 input) whatever the input's dtype, also under
// autocast; equal scores go to the lower head index.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace moh::ops {

struct Routing {
  at::Tensor gates;          // [..., H] what multiplies each head's output; shared heads first; zero: not selected
  at::Tensor indices;        // [..., K] int64, the chosen routed heads, best first, 0 = first routed head
  at::Tensor probabilities;  // [..., E] softmax of the routed heads' scores; differentiable
};

// Indices [..., top_k] of the largest scores along the last dimension, best first, ties to the lower index.
at::Tensor select_top_k(const at::Tensor& scores, std::int64_t top_k);

// The trained router. x [..., C]; wg = W_r [E, C], wg_1 = W_s [shared, C], wg_0 = W_h [2, C] (names of the authors'
// checkpoints); a matrix that the case does not need may be absent (spec, section 1).
//   form "paper"   (section 3.2): a_1 * softmax(W_s x) for shared heads, a_2 * softmax(W_r x) for the Top-K routed
//   ones. form "authors" (their ViT and DiT code): the same with factors shared, K and 2, and the routed gates
//   renormalised over
//                  the selected K, so that uniform scores make every active gate 1.
Routing route_two_stage(const at::Tensor& x, const std::optional<at::Tensor>& wg, const std::optional<at::Tensor>& wg_1,
                        const std::optional<at::Tensor>& wg_0, std::int64_t num_heads, std::int64_t shared_heads,
                        std::int64_t top_k, const std::string& form);

// The parameter-free router of MoH-LLaMA (section 3.4). query [..., H, D] before RoPE: a routed head's score is the L2
// norm of its query, divided by the (unbiased) standard deviation over the token's routed heads, through a softmax.
// Equal norms, or one routed head, give uniform scores. Gates are 1 for shared and selected heads, 0 otherwise;
// backward is straight-through: the gradient of a gate goes to its score.
// scale "mean" divides by the mean norm instead: for two routed heads the deviation makes every pair of norms the same
// pair of scores, whose gradient is zero. The selection is the same.
Routing route_query_norm(const at::Tensor& query, std::int64_t shared_heads, std::int64_t top_k,
                         const std::string& scale = "deviation");

// Share of gates that are not zero over all of them, 1 for none. One number comes from the device, whatever their
// count.
double active_share(const std::vector<at::Tensor>& gates);

// sum_i P_i f_i over the routed heads, P_i = mean probability, f_i = share of tokens that selected head i (no
// gradient). form "paper": as is (section 3.3); form "authors": times E. A scalar.
at::Tensor load_balance_loss(const at::Tensor& probabilities, const at::Tensor& indices, const std::string& form);

// One such loss in its parts: scale * sum_i probability_i load_i, both [E].
struct BalanceTerm {
  at::Tensor probability, load;
  double scale = 1;
};
// While one lives, every load_balance_loss of its thread leaves its parts here: P and f are means over tokens, so that
// processes that share a batch can have those of all of it, which their losses do not tell.
class BalanceTerms {
 public:
  BalanceTerms();
  ~BalanceTerms();
  BalanceTerms(const BalanceTerms&) = delete;
  BalanceTerms& operator=(const BalanceTerms&) = delete;
  const std::vector<BalanceTerm>& all() const { return terms_; }

 private:
  friend at::Tensor load_balance_loss(const at::Tensor&, const at::Tensor&, const std::string&);
  std::vector<BalanceTerm> terms_;
  BalanceTerms* before_;
};

}  // namespace moh::ops
