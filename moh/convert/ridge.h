// Ridge regression by its normal equations, in float64: rows come in pieces, memory is that of one matrix.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace moh::convert {

// Solves for a positive definite matrix [n, n], right [n, m]. Error: it is singular, or not finite.
at::Tensor solve_positive(const at::Tensor& matrix, const at::Tensor& right);

class Ridge {
 public:
  Ridge(std::int64_t inputs, std::int64_t outputs);

  // x [N, inputs], y [N, outputs]; products are formed in their type, sums in float64.
  void add(const at::Tensor& x, const at::Tensor& y);
  double rows() const { return rows_; }
  at::Tensor mean_squares() const;  // of every input, [inputs]

  // W [inputs, outputs] that minimises |X W - Y|^2 + sum_i penalty_i |W_i - prior_i|^2:
  //   (X^T X + diag(penalty)) W = X^T Y + diag(penalty) prior.
  at::Tensor solve(const at::Tensor& penalty, const std::optional<at::Tensor>& prior = std::nullopt) const;

 private:
  double rows_ = 0;
  at::Tensor gram_, cross_;
};

}  // namespace moh::convert
