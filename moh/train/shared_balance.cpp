#include "moh/train/shared_balance.h"

#include <ATen/ATen.h>

namespace moh::train {

using at::Tensor;

Tensor shared_balance_loss(const ops::BalanceTerms& terms, double share, const distributed::Group& group) {
  if (terms.all().empty()) return {};
  std::vector<Tensor> loads;
  std::vector<std::int64_t> sizes;
  for (const ops::BalanceTerm& term : terms.all()) {
    loads.push_back(term.load.detach().to(at::kFloat) * share);
    sizes.push_back(term.load.numel());
  }
  Tensor all = at::cat(loads);
  group.sum(all, "shares of the heads");
  const std::vector<Tensor> whole = all.split_with_sizes(sizes);
  std::vector<Tensor> losses;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const ops::BalanceTerm& term = terms.all()[i];
    losses.push_back((term.probability * whole[i].to(term.probability.scalar_type())).sum() * term.scale);
  }
  return at::stack(losses).mean();
}

}  // namespace moh::train
