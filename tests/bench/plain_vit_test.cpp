// MoH-ViT against the authors' form by LibTorch's operations, which computes every head.
#include "bench/plain_vit.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

namespace moh::bench {
namespace {

using at::Tensor;
using models::Vit;

models::VitConfig small_config(bool moh) {
  models::VitConfig config;
  config.image_size = 32;
  config.num_classes = 5;
  config.embed_dims = {8, 12, 16};
  config.num_heads = {2, 3, 4};
  config.depths = {1, 1, 2};
  config.sr_ratios = {4, 2, 1};
  config.mlp_ratios = {2, 2, 2};
  config.drop_path = 0;
  if (moh) config.moh = models::VitMohConfig{.shared_heads = {2, 1, 1}, .top_k = {0, 1, 2}};
  return config;
}

Tensor images(std::int64_t height, std::int64_t width) {
  at::manual_seed(height * 100 + width);
  return at::randn({2, 3, height, width});
}

TEST(PlainVit, AnySizeGivesTheModelsNumbers) {
  for (const bool moh : {true, false}) {
    const Vit model = Vit::initialize(small_config(moh), 1);
    const PlainVit plain(model);
    const c10::NoGradGuard no_grad;
    for (const auto& [height, width] : {std::pair{32, 32}, {64, 40}, {33, 47}, {5, 9}}) {
      const Tensor ours = model.forward({.images = images(height, width)}).logits;
      EXPECT_TRUE(at::allclose(ours, plain.forward(images(height, width)).logits, 1e-4, 1e-5))
          << height << "x" << width;
    }
  }
}

// The model keeps its position bias between calls without gradients, and makes it anew when the weights change.
TEST(PlainVit, ReusedPositionBiasFollowsItsWeights) {
  const Vit model = Vit::initialize(small_config(true), 2);
  const c10::NoGradGuard no_grad;
  const Tensor before = model.forward({.images = images(32, 32)}).logits;
  for (const auto& [name, tensor] : model.parameters()) {
    if (name.find("cpb_fc2.weight") != std::string::npos) Tensor(tensor).mul_(50);
  }
  const Tensor after = model.forward({.images = images(32, 32)}).logits;
  EXPECT_FALSE(at::allclose(before, after, 1e-4, 1e-6));
  EXPECT_TRUE(at::allclose(after, PlainVit(model).forward(images(32, 32)).logits, 1e-4, 1e-5));
}

TEST(PlainVit, GradientsAndBalanceLossesAgree) {
  Vit model = Vit::initialize(small_config(true), 3);
  model.set_requires_grad(true);
  const PlainVit plain(model);
  const auto take = [&] {
    std::vector<Tensor> gradients;
    for (const auto& [name, parameter] : model.parameters()) {
      gradients.push_back(parameter.grad());
      Tensor(parameter).mutable_grad() = Tensor();
    }
    return gradients;
  };
  const auto ours = model.forward({.images = images(32, 32), .training = true});
  const auto theirs = plain.forward(images(32, 32), /*training=*/true);
  ASSERT_EQ(ours.layer_losses.size(), theirs.balance_losses.size());
  (ours.logits.square().sum() + at::stack(ours.layer_losses).sum()).backward();
  const auto our_gradients = take();
  (theirs.logits.square().sum() + at::stack(theirs.balance_losses).sum()).backward();
  const auto their_gradients = take();
  for (std::size_t i = 0; i < our_gradients.size(); ++i) {
    const std::string& name = model.parameters()[i].first;
    ASSERT_TRUE(our_gradients[i].defined() && their_gradients[i].defined()) << name;
    const double error = (our_gradients[i] - their_gradients[i]).norm().item<double>();
    EXPECT_LE(error, 1e-4 * their_gradients[i].norm().item<double>() + 1e-5) << name;
  }
}

}  // namespace
}  // namespace moh::bench
