#include "moh/eval/image_metrics.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "moh/base/error.h"

namespace moh::eval {
namespace {

using at::Tensor;

void check_features(const Tensor& features, const char* what, std::int64_t least) {
  MOH_CHECK(features.dim() == 2 && features.size(0) >= least && features.size(1) > 0, "[image metrics] ", what,
            " must be [N, D] with at least ", least, " rows, got ", features.sizes());
  MOH_CHECK(at::isfinite(features).all().item<bool>(), "[image metrics] ", what, " hold values that are not finite");
}

// Symmetric, no eigenvalue below 0 but for rounding.
Tensor symmetric_root(const Tensor& matrix) {
  const auto [values, vectors] = at::linalg_eigh(matrix);
  return at::matmul(vectors * values.clamp_min(0).sqrt(), vectors.t());
}

// Squared distances [A, B] in float64 by the product, exact zero where rounding went below.
Tensor squared_distances(const Tensor& a, const Tensor& b) {
  const Tensor squares = a.square().sum(1, true) + b.square().sum(1, true).t();
  return (squares - 2 * at::matmul(a, b.t())).clamp_min(0);
}

constexpr std::int64_t kRows = 1024;  // at a time: memory is rows x N

// Squared distance of each row to its k-th nearest other row.
Tensor ball_sizes(const Tensor& features, std::int64_t neighbours, const std::function<void(std::int64_t)>& on_rows) {
  std::vector<Tensor> sizes;
  for (const Tensor& rows : features.split(kRows)) {
    // The nearest of all is the row itself.
    sizes.push_back(std::get<0>(at::kthvalue(squared_distances(rows, features), neighbours + 1, 1)));
    on_rows(rows.size(0));
  }
  return at::cat(sizes);
}

double covered_share(const Tensor& points, const Tensor& centres, const Tensor& sizes,
                     const std::function<void(std::int64_t)>& on_rows) {
  double covered = 0;
  for (const Tensor& rows : points.split(kRows)) {
    covered +=
        static_cast<double>((squared_distances(rows, centres) <= sizes.unsqueeze(0)).any(1).sum().item<std::int64_t>());
    on_rows(rows.size(0));
  }
  return covered / static_cast<double>(points.size(0));
}

}  // namespace

FeatureStatistics feature_statistics(const Tensor& features) {
  check_features(features, "features", 2);
  const c10::NoGradGuard no_grad;
  const Tensor mean = features.to(at::kDouble).mean(0);
  Tensor sum = at::zeros({features.size(1), features.size(1)}, mean.options());
  for (const Tensor& rows : features.split(kRows)) {
    const Tensor centred = rows.to(at::kDouble) - mean;
    sum.addmm_(centred.t(), centred);
  }
  return {mean, sum / static_cast<double>(features.size(0) - 1)};
}

double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b) {
  MOH_CHECK(a.mean.sizes() == b.mean.sizes() && a.covariance.sizes() == b.covariance.sizes(),
            "[image metrics] features of ", a.mean.size(0), " and ", b.mean.size(0), " values cannot be compared");
  const c10::NoGradGuard no_grad;
  const Tensor root = symmetric_root(a.covariance);
  const Tensor product = at::matmul(at::matmul(root, b.covariance), root);
  const double cross = at::linalg_eigvalsh((product + product.t()) / 2).clamp_min(0).sqrt().sum().item<double>();
  const double means = (a.mean - b.mean).square().sum().item<double>();
  return means + a.covariance.trace().item<double>() + b.covariance.trace().item<double>() - 2 * cross;
}

InceptionScore inception_score(const Tensor& probabilities, std::int64_t parts) {
  check_features(probabilities, "class probabilities", 1);
  MOH_CHECK(parts > 0 && parts <= probabilities.size(0), "[image metrics] ", probabilities.size(0),
            " pictures cannot be divided into ", parts, " parts");
  const c10::NoGradGuard no_grad;
  const Tensor all = probabilities.to(at::kDouble);
  MOH_CHECK((all.sum(1) - 1).abs().max().item<double>() < 1e-3 && all.min().item<double>() >= 0,
            "[image metrics] class probabilities must be at least 0 and sum to 1 in each row; are these logits?");
  std::vector<double> scores;
  for (std::int64_t i = 0; i < parts; ++i) {
    const std::int64_t from = i * all.size(0) / parts, to = (i + 1) * all.size(0) / parts;
    const Tensor part = all.narrow(0, from, to - from);
    const Tensor divergence = (at::xlogy(part, part) - at::xlogy(part, part.mean(0, true))).sum(1);
    scores.push_back(divergence.mean().exp().item<double>());
  }
  const Tensor values = at::tensor(scores, at::TensorOptions(at::kDouble));
  return {values.mean().item<double>(), values.std(/*unbiased=*/false).item<double>()};
}

PrecisionRecall precision_recall(const Tensor& real, const Tensor& generated, std::int64_t neighbours,
                                 const std::function<void(double)>& on_done) {
  MOH_CHECK(neighbours > 0, "[image metrics] neighbours must be positive, got ", neighbours);
  check_features(real, "real features", neighbours + 1);
  check_features(generated, "generated features", neighbours + 1);
  MOH_CHECK(real.size(1) == generated.size(1), "[image metrics] features of ", real.size(1), " and ", generated.size(1),
            " values cannot be compared");
  const c10::NoGradGuard no_grad;
  const Tensor a = real.to(at::kDouble), b = generated.to(at::kDouble);
  const double all = 2.0 * static_cast<double>(a.size(0) + b.size(0));
  double done = 0;
  const auto on_rows = [&](std::int64_t rows) {
    done += static_cast<double>(rows);
    if (on_done) on_done(done / all);
  };
  const Tensor real_sizes = ball_sizes(a, neighbours, on_rows), generated_sizes = ball_sizes(b, neighbours, on_rows);
  return {covered_share(b, a, real_sizes, on_rows), covered_share(a, b, generated_sizes, on_rows)};
}

}  // namespace moh::eval
