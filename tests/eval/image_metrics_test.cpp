// Image metrics against closed forms and against counting written anew; scripts with scipy check them from outside.
#include "moh/eval/image_metrics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/base/error_of.h"

namespace moh::eval {
namespace {

using at::Tensor;
using test::error_of;

TEST(FrechetDistance, ClosedForms) {
  at::manual_seed(1);
  const auto doubles = at::TensorOptions(at::kDouble);
  // Commuting covariances: sum of (sqrt(a) - sqrt(b))^2 over the common eigenvectors.
  const Tensor basis = std::get<0>(at::linalg_qr(at::randn({6, 6}, doubles)));
  const Tensor va = at::tensor({4.0, 1.0, 0.25, 0.0, 9.0, 2.0}, doubles);
  const Tensor vb = at::tensor({1.0, 1.0, 0.0, 0.0, 4.0, 8.0}, doubles);
  const auto with = [&](const Tensor& values) { return at::matmul(basis * values, basis.t()); };
  const Tensor ma = at::randn({6}, doubles), mb = at::randn({6}, doubles);
  const double expected =
      (ma - mb).square().sum().item<double>() + (va.sqrt() - vb.sqrt()).square().sum().item<double>();
  EXPECT_NEAR(frechet_distance({ma, with(va)}, {mb, with(vb)}), expected, 1e-6);
  // Two by two, any matrices: tr (C1 C2)^(1/2) = sqrt(tr(C1 C2) + 2 sqrt(det C1 det C2)).
  const Tensor x = at::randn({40, 2}, doubles), y = at::randn({30, 2}, doubles) * 2 + 1;
  const auto a = feature_statistics(x), b = feature_statistics(y);
  const double root =
      std::sqrt(at::matmul(a.covariance, b.covariance).trace().item<double>() +
                2 * std::sqrt((at::linalg_det(a.covariance) * at::linalg_det(b.covariance)).item<double>()));
  EXPECT_NEAR(frechet_distance(a, b),
              (a.mean - b.mean).square().sum().item<double>() +
                  (a.covariance.trace() + b.covariance.trace()).item<double>() - 2 * root,
              1e-9);
  EXPECT_NEAR(frechet_distance(a, a), 0, 1e-9);
  // Fewer examples than dimensions.
  const auto few = feature_statistics(at::randn({5, 20}, doubles));
  EXPECT_NEAR(frechet_distance(few, few), 0, 1e-6);
}

TEST(FeatureStatistics, AreUnbiased) {
  const Tensor x = at::tensor({1.0, 2.0, 4.0, 3.0, 0.0, 7.0}, at::TensorOptions(at::kDouble)).reshape({3, 2});
  const auto statistics = feature_statistics(x);
  EXPECT_NEAR(statistics.mean[0].item<double>(), 5.0 / 3, 1e-12);
  EXPECT_NEAR(statistics.mean[1].item<double>(), 4.0, 1e-12);
  EXPECT_NEAR(statistics.covariance[0][0].item<double>(), 13.0 / 3, 1e-12);
  EXPECT_NEAR(statistics.covariance[0][1].item<double>(), -3.0, 1e-12);
  EXPECT_NE(error_of([&] { feature_statistics(x.narrow(0, 0, 1)); }).find("at least 2 rows"), std::string::npos);
  EXPECT_NE(error_of([&] { feature_statistics(x / 0.0); }).find("not finite"), std::string::npos);
}

TEST(InceptionScore, Extremes) {
  EXPECT_NEAR(inception_score(at::eye(10, at::TensorOptions(at::kDouble)), 1).mean, 10, 1e-9);
  const auto flat = inception_score(at::full({20, 5}, 0.2, at::kDouble), 4);
  EXPECT_NEAR(flat.mean, 1, 1e-9);
  EXPECT_NEAR(flat.deviation, 0, 1e-9);
  EXPECT_NE(error_of([] { inception_score(at::randn({20, 5}), 4); }).find("logits"), std::string::npos);
}

TEST(PrecisionRecall, EqualsCounting) {
  at::manual_seed(3);
  const Tensor real = at::randn({60, 3}), generated = at::randn({50, 3}) * 0.6 + 0.4;
  const auto distance = [](const Tensor& a, const Tensor& b) {
    return (a.to(at::kDouble) - b.to(at::kDouble)).square().sum().item<double>();
  };
  const auto covered = [&](const Tensor& points, const Tensor& centres) {
    std::int64_t inside = 0;
    for (std::int64_t i = 0; i < points.size(0); ++i) {
      bool found = false;
      for (std::int64_t j = 0; j < centres.size(0) && !found; ++j) {
        std::vector<double> others;
        for (std::int64_t k = 0; k < centres.size(0); ++k) {
          if (k != j) others.push_back(distance(centres[j], centres[k]));
        }
        std::sort(others.begin(), others.end());
        found = distance(points[i], centres[j]) <= others[2];
      }
      inside += found;
    }
    return static_cast<double>(inside) / static_cast<double>(points.size(0));
  };
  const auto both = precision_recall(real, generated, 3);
  EXPECT_DOUBLE_EQ(both.precision, covered(generated, real));
  EXPECT_DOUBLE_EQ(both.recall, covered(real, generated));
  EXPECT_GT(both.precision, both.recall);
}

}  // namespace
}  // namespace moh::eval
