// Recomputation: the same outputs, gradients and draws to the bit, and less memory kept between forward and backward.
#include "moh/layers/recompute.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "moh/models/dit.h"
#include "moh/models/llama.h"
#include "moh/models/vit.h"
#include "moh/ops/autocast.h"

namespace {

using at::Tensor;
using namespace moh;

struct Result {
  double loss;
  std::vector<Tensor> gradients;
};

template <class Model>
Result backward(Model& model, const Tensor& loss) {
  loss.backward();
  Result result{loss.item<double>(), {}};
  for (const auto& [name, parameter] : model.parameters()) {
    result.gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : Tensor());
    parameter.mutable_grad() = Tensor();
  }
  return result;
}

void expect_same(const Result& a, const Result& b, const io::NamedTensors& parameters) {
  EXPECT_EQ(a.loss, b.loss);
  for (std::size_t i = 0; i < a.gradients.size(); ++i) {
    ASSERT_EQ(a.gradients[i].defined(), b.gradients[i].defined()) << parameters[i].first;
    if (a.gradients[i].defined()) {
      EXPECT_TRUE(at::equal(a.gradients[i], b.gradients[i])) << parameters[i].first;
    }
  }
}

TEST(Recompute, LlamaGivesTheSameGradientsToTheBit) {
  for (const std::string router : {"", "norm", "two-stage"}) {
    for (const char* dtype : {"fp32", "bf16"}) {
      SCOPED_TRACE("router `" + router + "`, " + dtype);
      models::LlamaConfig config = models::llama_preset("llm-tiny");
      config.vocab_size = 50;
      config.hidden_size = 32;
      config.intermediate_size = 48;
      config.num_hidden_layers = 3;
      config.num_attention_heads = config.num_key_value_heads = 4;
      config.head_dim = 8;
      config.tie_word_embeddings = true;
      if (!router.empty()) config.moh = models::make_moh_config(3, 4, 0.75, std::nullopt, std::nullopt, router);
      auto model = models::Llama::initialize(config, 3);
      model.set_requires_grad(true);
      const Tensor ids = at::randint(50, {2, 12}, at::TensorOptions(at::kLong));
      const auto run = [&](bool recompute) {
        const ops::Autocast autocast(ops::autocast_type(dtype));
        const auto output = model.forward({.ids = ids, .balance_loss = true, .recompute = recompute});
        EXPECT_EQ(output.routing.size(), router.empty() ? 0U : 3U);
        Tensor loss = output.logits.to(at::kFloat).square().mean();
        if (output.load_balance_loss.defined()) loss = loss + output.load_balance_loss;
        return loss;
      };
      const Result plain = backward(model, run(false)), again = backward(model, run(true));
      expect_same(plain, again, model.parameters());
    }
  }
}

TEST(Recompute, VitAndDitToo) {
  models::VitConfig config;
  config.image_size = 16;
  config.patch_size = 2;
  config.num_classes = 3;
  config.embed_dims = {8, 16};
  config.num_heads = {2, 4};
  config.depths = {2, 2};
  config.sr_ratios = {2, 1};
  config.mlp_ratios = {2, 2};
  config.drop_path = 0.5;
  config.moh = models::VitMohConfig{.shared_heads = {1, 2}, .top_k = {1, 1}};
  auto vit = models::Vit::initialize(config, 1);
  vit.set_requires_grad(true);
  const Tensor images = at::randn({4, 3, 16, 16}, at::TensorOptions(at::kFloat));
  const auto run = [&](bool recompute) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    generator.set_current_seed(8);  // drop path draws from it
    const auto output = vit.forward({.images = images, .training = true, .recompute = recompute});
    EXPECT_EQ(output.layer_losses.size(), 4U);
    return output.logits.square().mean() + output.load_balance_loss;
  };
  const Result plain = backward(vit, run(false)), again = backward(vit, run(true));
  expect_same(plain, again, vit.parameters());

  models::DitConfig small = models::dit_preset("moh-dit-s-2-75");
  small.input_size = 8;
  small.hidden_size = 24;
  small.depth = 3;
  small.head_dim = 6;
  small.num_classes = 5;
  small.num_heads = {4, 2, 6};
  small.moh->shared_heads = {2, 2, 0};
  small.moh->top_k = {1, 0, 3};
  auto dit = models::Dit::initialize(small, 4);
  for (const auto& [name, parameter] : dit.parameters()) {
    if (name.find("adaLN") != std::string::npos || name.starts_with("final"))
      parameter.normal_(0, 0.1);  // zeros at first
  }
  dit.set_requires_grad(true);
  const Tensor x = at::randn({2, small.in_channels, 8, 8}, at::TensorOptions(at::kFloat));
  const Tensor t = at::tensor({5, 700}, at::TensorOptions(at::kLong)),
               y = at::tensor({0, 3}, at::TensorOptions(at::kLong));
  const auto denoise = [&](bool recompute) {
    const auto output = dit.forward(x, t, y, /*balance_loss=*/true, recompute);
    EXPECT_EQ(output.balance_losses.size(), 2U);  // the layer without routed heads has none
    return output.y.square().mean() + output.load_balance_loss;
  };
  const Result one = backward(dit, denoise(false)), two = backward(dit, denoise(true));
  expect_same(one, two, dit.parameters());
}

TEST(Recompute, RunsOnceForwardAndOnceBackward) {
  int runs = 0;
  const Tensor weight = at::randn({3}, at::TensorOptions(at::kFloat)).set_requires_grad(true);
  const Tensor x = at::randn({3}, at::TensorOptions(at::kFloat)).set_requires_grad(true);
  const auto results = layers::recomputed(
      [&](const std::vector<Tensor>& inputs) -> std::vector<Tensor> {
        ++runs;
        return {(inputs[0] * weight).exp(), inputs[0].gt(0)};
      },
      {x}, {weight}, 1);
  EXPECT_FALSE(results[1].requires_grad());
  results[0].sum().backward();
  EXPECT_EQ(runs, 2);
  EXPECT_TRUE(at::allclose(x.grad(), (x * weight).exp() * weight));
  EXPECT_TRUE(at::allclose(weight.grad(), (x * weight).exp() * x));
}

}  // namespace
