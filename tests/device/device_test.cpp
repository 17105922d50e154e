// Whole models on another device than the CPU: results as on the CPU, no tensor of the CPU among theirs, and no more
// waits for the device than docs/cuda.md says.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "moh/data/token_data.h"
#include "moh/eval/head_load.h"
#include "moh/eval/perplexity.h"
#include "moh/generate/generate.h"
#include "moh/generate/pictures.h"
#include "moh/io/npy.h"
#include "moh/models/dit.h"
#include "moh/models/llama.h"
#include "moh/models/vae.h"
#include "moh/models/vit.h"
#include "moh/train/dit_task.h"
#include "moh/train/language_task.h"
#include "moh/train/optimizer.h"
#include "tests/device/strict_device.h"
#include "tests/io/temp_folder.h"

namespace moh {
namespace {

using at::Tensor;
using test::strict_device;
using test::take_traffic;

io::NamedTensors gradients_of(const io::NamedTensors& parameters) {
  io::NamedTensors gradients;
  for (const auto& [name, tensor] : parameters) {
    if (tensor.grad().defined()) gradients.emplace_back(name, tensor.grad().cpu().to(at::kDouble));
  }
  return gradients;
}

// Every gradient to a part of its own largest number. Some are zero but for rounding (a bias of the keys): to a part of
// the largest of all.
void expect_close_gradients(const io::NamedTensors& got, const io::NamedTensors& expected) {
  ASSERT_EQ(got.size(), expected.size());
  ASSERT_GT(got.size(), 5U);
  const auto largest = [](const Tensor& tensor) { return tensor.abs().max().item<double>(); };
  double all = 0;
  for (const auto& [name, wanted] : expected) all = std::max(all, largest(wanted));
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].first, expected[i].first);
    const Tensor& wanted = expected[i].second;
    EXPECT_LE(largest(got[i].second - wanted), 1e-3 * largest(wanted) + 1e-6 * all) << got[i].first;
  }
}

// Adam turns gradients that are all rounding into steps of either sign: few numbers may differ by a step, not many.
void expect_close_on_average(const io::NamedTensors& got, const io::NamedTensors& expected, double lr) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const Tensor error = got[i].second.detach().cpu() - expected[i].second.detach();
    EXPECT_LE(error.abs().mean().item<double>(), 0.05 * lr) << got[i].first;
  }
}

TEST(StrictDevice, IsStrict) {
  take_traffic();
  const Tensor ours = at::ones({3}, at::TensorOptions(strict_device())), host = at::ones({3});
  EXPECT_THROW(ours + host, std::exception);
  EXPECT_THROW(at::index_select(ours, 0, host.to(at::kLong)), std::exception);
  EXPECT_EQ(take_traffic().waits, 0);
  EXPECT_EQ((ours + 1).sum().item<double>(), 6);
  EXPECT_EQ(take_traffic().waits, 1);
  EXPECT_DEATH(static_cast<void>(*static_cast<const volatile float*>(ours.const_data_ptr())), "");
  EXPECT_TRUE(at::equal(host.to(strict_device()).cpu(), host));
  const auto traffic = take_traffic();
  EXPECT_EQ(traffic.waits, 1);
  EXPECT_EQ(traffic.to_device, 1);
}

models::LlamaConfig llama_config(const std::string& router) {
  models::LlamaConfig config = models::llama_preset("llm-tiny");
  config.vocab_size = 64;
  config.hidden_size = 32;
  config.intermediate_size = 64;
  config.num_hidden_layers = 3;
  config.num_attention_heads = 8;
  config.num_key_value_heads = 4;
  config.head_dim = 8;
  config.query_key_norm = models::QueryKeyNorm::kHead;
  config.initializer_range = 0.3;  // so that no two scores nearly tie
  config.moh = models::make_moh_config(3, 8, 0.75, std::nullopt, std::nullopt, router);
  config.moh->head_order.assign(3, {3, 1, 2, 0, 7, 6, 5, 4});
  return config;
}

// A file of 600 token ids below 64.
std::string write_ids(const test::TempFolder& folder) {
  std::vector<std::uint16_t> ids(600);
  std::uint32_t state = 1;
  for (auto& id : ids) id = static_cast<std::uint16_t>(((state = state * 1664525 + 1013904223) >> 20) % 64);
  const std::string file = folder.path() + "/ids.npy";
  io::write_npy(file, "u2", {static_cast<std::int64_t>(ids.size())}, std::as_bytes(std::span(ids)));
  return file;
}

class LlamaOnDevice : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Routers, LlamaOnDevice, testing::Values("norm", "two-stage"),
                         [](const auto& info) { return info.index == 0 ? "norm" : "two_stage"; });

TEST_P(LlamaOnDevice, TrainsAsOnTheCpu) {
  const test::TempFolder folder;
  const std::string file = write_ids(folder);
  std::vector<double> losses[2];
  io::NamedTensors weights[2];
  for (const int way : {0, 1}) {
    models::Llama model = models::Llama::initialize(llama_config(GetParam()), 7);
    std::optional<models::Llama> teacher = models::Llama::initialize(llama_config(GetParam()), 8);
    if (way == 1) {
      model.to(strict_device());
      teacher->to(strict_device());
    }
    train::LanguageTaskOptions options;
    options.sequence = 24;
    options.distill_weight = 0.5;
    train::LanguageTask task(std::move(model), data::TokenStream::open(file, nullptr, 64), std::nullopt,
                             std::move(teacher), options);
    train::AdamW optimizer(task.parameters(), task.decays(), {});
    for (int step = 0; step < 3; ++step) {
      take_traffic();
      const auto loss = task.loss(2 * step, 2);
      loss.objective.backward();
      optimizer.clip_gradients(1.0);
      optimizer.step(1e-3);
      optimizer.clear_gradients();
      losses[way].push_back(loss.loss);
      EXPECT_LT(loss.active_heads, 1);
      const auto traffic = take_traffic();
      if (way == 0) continue;
      EXPECT_LE(traffic.waits, 5);      // four, and the distillation's loss
      EXPECT_LE(traffic.to_device, 1);  // the ids
    }
    // As a checkpoint does, and a resume.
    optimizer.save(folder.path());
    train::AdamW resumed(task.parameters(), task.decays(), {});
    resumed.load(folder.path());
    const auto state = optimizer.state(), again = resumed.state();
    for (std::size_t i = 0; i < state.size(); ++i) {
      EXPECT_TRUE(at::equal(state[i].second, again[i].second)) << state[i].first;
    }
    weights[way] = task.parameters();
  }
  for (std::size_t i = 0; i < losses[0].size(); ++i) EXPECT_NEAR(losses[0][i], losses[1][i], 1e-3);
  EXPECT_EQ(weights[1][0].second.device(), strict_device());
  expect_close_on_average(weights[1], weights[0], 1e-3);
}

TEST_P(LlamaOnDevice, GeneratesAsOnTheCpu) {
  models::Llama model = models::Llama::initialize(llama_config(GetParam()), 9);
  const auto expected = generate::generate(model, {1, 5, 9, 2}, 20, {}, {});
  model.to(strict_device());
  take_traffic();
  const auto result = generate::generate(model, {1, 5, 9, 2}, 20, {}, {});
  const auto traffic = take_traffic();
  EXPECT_EQ(result.ids, expected.ids);
  EXPECT_LE(traffic.waits, 2 * 20);
  EXPECT_LE(traffic.to_device, 20);
}

TEST_P(LlamaOnDevice, EvaluatesAsOnTheCpu) {
  const test::TempFolder folder;
  const data::TokenStream stream = data::TokenStream::open(write_ids(folder), nullptr, 64);
  models::Llama model = models::Llama::initialize(llama_config(GetParam()), 9);
  const auto expected = eval::perplexity(model, stream, {.sequence = 50, .batch = 4});
  const auto expected_load = eval::head_load(model, stream, 50, 3);
  model.to(strict_device());
  const auto result = eval::perplexity(model, stream, {.sequence = 50, .batch = 4});
  EXPECT_NEAR(result.nll, expected.nll, 1e-5 * expected.nll);
  EXPECT_EQ(result.tokens, expected.tokens);
  EXPECT_NEAR(result.active_heads, expected.active_heads, 1e-12);
  const auto load = eval::head_load(model, stream, 50, 3);
  EXPECT_EQ(load.tokens, expected_load.tokens);
  EXPECT_EQ(load.share, expected_load.share);
}

models::Dit dit_model(std::uint64_t seed) {
  models::DitConfig config = models::dit_preset("moh-dit-pixel-tiny");
  config.input_size = 8;
  config.depth = 2;
  config.num_heads = {4, 6};
  config.hidden_size = 48;
  config.head_dim = 8;
  config.moh->shared_heads = {1, 2};
  config.moh->top_k = {2, 2};
  const at::Generator random = at::detail::createCPUGenerator(seed);
  io::NamedTensors tensors;
  for (const auto& spec : models::dit_parameters(config)) {
    tensors.emplace_back(spec.name, at::randn(spec.shape, random) * 0.2);
  }
  return models::Dit(config, tensors);
}

TEST(DitOnDevice, SamplesAsOnTheCpu) {
  models::Dit model = dit_model(4);
  diffusion::Pictures pictures;
  pictures.seed = 3;
  pictures.numbers = {0, 1, 2};
  pictures.labels = {1, 4, 9};
  std::vector<Tensor> expected;
  for (const bool on_device : {false, true}) {
    if (on_device) model.to(strict_device());
    std::size_t number = 0;
    for (const char* sampler : {"ddpm", "ddim", "dpm++"}) {
      generate::PictureOptions how;
      how.sampler.sampler = sampler;
      how.sampler.steps = std::to_string(5);
      how.sampler.guidance = 1.5;
      how.sampler.clip = true;
      take_traffic();
      const Tensor bytes = generate::sample_pictures(model, nullptr, how, pictures, {}).to(at::kInt);
      const auto traffic = take_traffic();
      if (!on_device) {
        expected.push_back(bytes);
        continue;
      }
      EXPECT_EQ(traffic.waits, 1) << sampler;  // the pictures
      EXPECT_LE((bytes - expected[number++]).abs().max().item<int>(), 1) << sampler;
    }
  }
}

TEST(DitOnDevice, TrainsAsOnTheCpu) {
  const at::Generator random = at::detail::createCPUGenerator(5);
  const Tensor pixels = at::randint(255, {6, 3, 8, 8}, random, at::TensorOptions(at::kByte));
  const auto source = std::make_shared<data::PixelSource>(pixels, std::vector<std::int64_t>{0, 1, 2, 3, 4, 5},
                                                          std::vector<std::string>{});
  std::vector<double> losses[2];
  io::NamedTensors gradients[2];
  for (const int way : {0, 1}) {
    models::Dit model = dit_model(6);
    if (way == 1) model.to(strict_device());
    train::DitTask task(std::move(model), source, nullptr, {});
    train::AdamW optimizer(task.parameters(), task.decays(), {});
    for (int step = 0; step < 2; ++step) {
      take_traffic();
      const auto loss = task.loss(3 * step, 3);
      loss.objective.backward();
      const auto traffic = take_traffic();
      if (step == 0) gradients[way] = gradients_of(task.parameters());
      take_traffic();
      optimizer.clip_gradients(1.0);
      optimizer.step(1e-4);
      optimizer.clear_gradients();
      losses[way].push_back(loss.loss);
      EXPECT_LE(traffic.waits + take_traffic().waits, 4);
    }
  }
  for (std::size_t i = 0; i < losses[0].size(); ++i) EXPECT_NEAR(losses[0][i], losses[1][i], 1e-4 * losses[0][i]);
  expect_close_gradients(gradients[1], gradients[0]);
}

TEST(VaeOnDevice, EncodesAndDecodesAsOnTheCpu) {
  models::VaeConfig config;
  config.layers_per_block = 1;
  config.norm_num_groups = 4;
  config.block_out_channels = {8, 16};
  const at::Generator random = at::detail::createCPUGenerator(8);
  io::NamedTensors tensors;
  for (const auto& spec : models::vae_parameters(config)) {
    tensors.emplace_back(spec.name, at::randn(spec.shape, random) * 0.2);
  }
  models::Vae vae(config, tensors);
  const Tensor pictures = at::rand({2, 3, 16, 16}, random) * 2 - 1, latents = at::randn({2, 4, 8, 8}, random);
  const Tensor mean = vae.encode(pictures).mean, decoded = vae.decode(latents);
  vae.to(strict_device());
  take_traffic();
  const Tensor got_mean = vae.encode(pictures.to(strict_device())).mean;
  const Tensor got = vae.decode(latents.to(strict_device()));
  EXPECT_EQ(take_traffic().waits, 0);
  EXPECT_TRUE(at::allclose(got_mean.cpu(), mean, 1e-4, 1e-4));
  EXPECT_TRUE(at::allclose(got.cpu(), decoded, 1e-4, 1e-4));
}

TEST(VitOnDevice, ValuesAndGradientsAreThoseOfTheCpu) {
  models::VitConfig config;
  config.image_size = 16;
  config.patch_size = 2;
  config.num_classes = 3;
  config.embed_dims = {8, 16};
  config.num_heads = {2, 4};
  config.depths = {1, 2};
  config.sr_ratios = {2, 1};
  config.mlp_ratios = {2, 2};
  config.drop_path = 0.1;
  config.crop = 1;
  config.moh = models::VitMohConfig{.shared_heads = {1, 2}, .top_k = {1, 1}};
  const Tensor images = at::randn({3, 3, 16, 16}, at::detail::createCPUGenerator(1));
  const Tensor target = at::randn({3, 3}, at::detail::createCPUGenerator(2));
  Tensor logits[2];
  io::NamedTensors gradients[2];
  for (const int way : {0, 1}) {
    models::Vit model = models::Vit::initialize(config, 3);
    const at::Device device = way == 1 ? strict_device() : at::Device(at::kCPU);
    model.to(device);
    model.set_requires_grad(true);
    at::Generator(at::detail::getDefaultCPUGenerator()).set_current_seed(11);  // of drop path
    const Tensor x = images.to(device), weights = target.to(device);
    take_traffic();
    const auto output = model.forward({.images = x, .training = true});
    ((output.logits * weights).sum() + output.load_balance_loss).backward();
    EXPECT_EQ(take_traffic().waits, 0);
    logits[way] = output.logits.detach().cpu();
    gradients[way] = gradients_of(model.parameters());
  }
  EXPECT_LE((logits[0] - logits[1]).abs().max().item<double>(), 1e-4);
  expect_close_gradients(gradients[1], gradients[0]);
}

}  // namespace
}  // namespace moh
