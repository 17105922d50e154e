// Sampling: the same picture beside any others and with any number of threads; memory; what is refused.
#include "moh/generate/pictures.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "moh/ops/memory_pool.h"
#include "tests/base/error_of.h"

namespace moh::generate {
namespace {

using at::Tensor;
using test::error_of;

// A model whose output depends on everything: all weights random.
models::Dit small_model(std::int64_t input_size = 8, double scale = 0.2) {
  models::DitConfig config = models::dit_preset("moh-dit-pixel-tiny");
  config.input_size = input_size;
  config.depth = 2;
  config.num_heads = {4, 6};
  config.hidden_size = 48;
  config.head_dim = 8;
  config.moh->shared_heads = {1, 2};
  config.moh->top_k = {2, 2};
  at::manual_seed(4);
  io::NamedTensors tensors;
  for (const auto& spec : models::dit_parameters(config))
    tensors.emplace_back(spec.name, at::randn(spec.shape) * scale);
  return models::Dit(config, tensors);
}

PictureOptions options(const std::string& sampler, const std::string& steps, double guidance) {
  PictureOptions result;
  result.sampler.sampler = sampler;
  result.sampler.steps = steps;
  result.sampler.guidance = guidance;
  result.sampler.eta = sampler == "ddim" ? 0.5 : 0;
  result.sampler.clip = true;
  return result;
}

Tensor sample(const models::Dit& model, const PictureOptions& how, std::vector<std::int64_t> numbers) {
  diffusion::Pictures pictures;
  pictures.seed = 17;
  for (const std::int64_t number : numbers) pictures.labels.push_back(number % 10);
  pictures.numbers = std::move(numbers);
  return sample_pictures(model, nullptr, how, pictures, {});
}

class SamplePictures : public testing::TestWithParam<std::tuple<const char*, double, std::int64_t>> {};

TEST_P(SamplePictures, DoNotDependOnCompanyOrThreads) {
  const auto [sampler, guidance, input_size] = GetParam();
  const models::Dit model = small_model(input_size);
  const PictureOptions how = options(sampler, "4", guidance);
  at::set_num_threads(1);
  const Tensor all = sample(model, how, {0, 1, 2, 3, 4});
  EXPECT_GT(all.to(at::kFloat).std().item<double>(), 1) << "a flat picture shows nothing";
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(sample(model, how, {0, 1, 2, 3, 4}), all)) << threads << " threads";
    for (const std::int64_t number : {0, 4}) {
      EXPECT_TRUE(at::equal(sample(model, how, {number})[0], all[number])) << threads << " threads, alone";
    }
    EXPECT_TRUE(at::equal(sample(model, how, {4, 2})[1], all[2])) << threads << " threads, a pair";
  }
  at::set_num_threads(1);
  EXPECT_FALSE(at::equal(all[0], all[1]));
}

INSTANTIATE_TEST_SUITE_P(Samplers, SamplePictures,
                         testing::Values(std::tuple{"ddpm", 1.0, std::int64_t{8}},
                                         std::tuple{"ddpm", 2.0, std::int64_t{6}},
                                         std::tuple{"ddim", 1.5, std::int64_t{8}},
                                         std::tuple{"dpm++", 1.5, std::int64_t{16}}));

TEST(SamplePictures, TakeNoMemoryAfterTheFirstStep) {
  const models::Dit model = small_model(16);
  for (const auto& [sampler, settled] : {std::pair{"ddpm", 1}, std::pair{"ddim", 1}, std::pair{"dpm++", 2}}) {
    const ops::MemoryPool pool;
    std::int64_t blocks = 0, steps = 0;
    diffusion::Pictures pictures;
    pictures.numbers = {0, 1};
    pictures.labels = {3, 5};
    sample_pictures(model, nullptr, options(sampler, "250", 1.5), pictures, [&](std::int64_t done) {
      if (done == settled) blocks = pool.system_blocks();
      if (done == 250) {
        EXPECT_EQ(pool.system_blocks(), blocks) << sampler;
      }
      ++steps;
      return true;
    });
    EXPECT_EQ(steps, 250);
    EXPECT_GT(blocks, 10);
  }
}

TEST(SamplePictures, StopAndErrors) {
  const models::Dit model = small_model();
  diffusion::Pictures pictures;
  pictures.numbers = {0};
  pictures.labels = {1};
  EXPECT_FALSE(sample_pictures(model, nullptr, options("ddpm", "9", 1), pictures, [](std::int64_t done) {
                 return done < 3;
               }).defined());
  const auto error = [&](const PictureOptions& how, std::int64_t label) {
    return error_of([&] { check_pictures(model, nullptr, how, {label}); });
  };
  EXPECT_EQ(error(options("ddpm", "9", 1), 10), "");  // 10: no class
  EXPECT_NE(error(options("ddpm", "9", 1), 11).find("class 11 is out of range"), std::string::npos);
  PictureOptions odd = options("ddpm", "9", 1);
  odd.size = 9;
  EXPECT_NE(error(odd, 1).find("multiple of the model's patch size"), std::string::npos);
  EXPECT_NE(error_of([] { diffusion::Sampler(diffusion::SamplerOptions{.sampler = "euler"}); }).find("dpm++"),
            std::string::npos);
}

TEST(PictureSheet, PlacesPicturesRowByRow) {
  const Tensor pictures = at::arange(5 * 2 * 3 * 3, at::kLong).to(at::kByte).reshape({5, 2, 3, 3});
  const Tensor sheet = picture_sheet(pictures, 2);
  EXPECT_EQ(sheet.sizes(), (std::vector<std::int64_t>{3 * 4 - 2, 2 * 5 - 2, 3}));
  EXPECT_TRUE(at::equal(sheet.narrow(0, 4, 2).narrow(1, 5, 3), pictures[3]));
  EXPECT_EQ(sheet[9][7][0].item<int>(), 255);  // the place of the sixth
  const Tensor values = to_bytes(at::tensor({-1.0F, 0.0F, 1.0F, 7.0F}).reshape({1, 1, 1, 4}));
  EXPECT_TRUE(at::equal(values.flatten(), at::tensor({0, 128, 255, 255}, at::kByte)));
}

}  // namespace
}  // namespace moh::generate
