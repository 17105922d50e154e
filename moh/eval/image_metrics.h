// How far generated pictures are from real ones, from features that some network gave for both (the paper:
// Inception-v3). All in float64.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace moh::eval {

struct FeatureStatistics {
  at::Tensor mean;        // [D]
  at::Tensor covariance;  // [D, D], unbiased
};
FeatureStatistics feature_statistics(const at::Tensor& features);  // [N, D], N > 1

// Frechet distance of two normal distributions: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). FID with pooled Inception
// features, sFID with spatial ones. The root is that of sqrt(C1) C2 sqrt(C1), which is symmetric, so covariances of
// less than full rank need no care.
double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b);

struct InceptionScore {
  double mean = 0, deviation = 0;  // over the parts
};
// exp(E KL(p(y|x) || p(y))) of class probabilities [N, classes], over `parts` equal parts in order.
InceptionScore inception_score(const at::Tensor& probabilities, std::int64_t parts = 10);

struct PrecisionRecall {
  double precision = 0, recall = 0;
};
// Kynkaanniemi et al. 2019: the share of generated features within some real one's ball, and the other way round; a
// ball reaches to the k-th nearest neighbour of its own kind. `on_done` hears the share of the work done.
PrecisionRecall precision_recall(const at::Tensor& real, const at::Tensor& generated, std::int64_t neighbours = 3,
                                 const std::function<void(double)>& on_done = {});

}  // namespace moh::eval
