#include "moh/convert/ridge.h"

#include <ATen/ATen.h>

#include "moh/base/error.h"

namespace moh::convert {

using at::Tensor;

Tensor solve_positive(const Tensor& matrix, const Tensor& right) {
  const auto [factor, info] = at::linalg_cholesky_ex(matrix);
  MOH_CHECK(info.item<int>() == 0,
            "[convert] the calibration text does not determine the fit (the normal equations of ", matrix.size(0),
            " inputs are singular or not finite); give more windows");
  return at::cholesky_solve(right, factor);
}

Ridge::Ridge(std::int64_t inputs, std::int64_t outputs) {
  const at::TensorOptions options(at::kDouble);
  gram_ = at::zeros({inputs, inputs}, options);
  cross_ = at::zeros({inputs, outputs}, options);
}

void Ridge::add(const Tensor& x, const Tensor& y) {
  rows_ += static_cast<double>(x.size(0));
  gram_ += at::matmul(x.t(), x);
  cross_ += at::matmul(x.t(), y);
}

Tensor Ridge::mean_squares() const { return gram_.diagonal() / rows_; }

Tensor Ridge::solve(const Tensor& penalty, const std::optional<Tensor>& prior) const {
  const Tensor weights = penalty.to(at::kDouble);
  Tensor right = cross_;
  if (prior) right = right + weights.unsqueeze(1) * prior->to(at::kDouble);
  return solve_positive(gram_ + at::diag(weights), right);
}

}  // namespace moh::convert
