// The load-balance loss of a batch that several processes share. It is no mean of the processes' losses: f of all
// tokens multiplies P of all tokens (spec, section 3.3).
#pragma once

#include "moh/distributed/group.h"
#include "moh/ops/routing.h"

namespace moh::train {

// Mean over the layers of sum_i P_i f_i with this process's P and everybody's f; weighted by `share`, this process's of
// the batch's examples, the values add up to the loss of the whole batch and so do their gradients. Undefined: no
// terms.
at::Tensor shared_balance_loss(const ops::BalanceTerms& terms, double share, const distributed::Group& group);

}  // namespace moh::train
