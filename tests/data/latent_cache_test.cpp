// The latent cache: what it holds is what the autoencoder says of each picture and of its mirror image, draws have the
// distribution's moments, interrupted encoding goes on, and another origin is refused.
#include "moh/data/latent_cache.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "moh/data/picture_folder.h"
#include "moh/io/image.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::data {
namespace {

using at::Tensor;
using test::error_of;
using test::TempFolder;

models::Vae random_vae(std::uint64_t seed) {
  models::VaeConfig config;
  config.block_out_channels = {4, 8};
  config.norm_num_groups = 2;
  config.layers_per_block = 1;
  config.latent_channels = 3;
  config.scaling_factor = 0.4;
  config.shift_factor = 0.1;
  const at::Generator random = at::detail::createCPUGenerator(seed);
  io::NamedTensors tensors;
  for (const auto& spec : models::vae_parameters(config)) {
    tensors.emplace_back(spec.name, at::empty(spec.shape).normal_(0, 0.2, random));
  }
  return models::Vae(config, tensors);
}

class LatentCache : public testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < 5; ++i) {
      io::Image image{8, 8, std::vector<std::uint8_t>(8 * 8 * 3)};
      for (std::size_t p = 0; p < image.rgb.size(); ++p) {
        image.rgb[p] = static_cast<std::uint8_t>((p * 37 + p * p * 11 + static_cast<std::size_t>(i) * 71) % 256);
      }
      const std::string name = folder_.file(i < 2 ? "data/a" : "data/b");
      std::filesystem::create_directories(name);
      io::save_png(name + "/" + std::to_string(i) + ".png", image);
    }
  }
  ImageFolder pictures() const { return ImageFolder::open(folder_.file("data")); }
  bool make(const models::Vae& vae, const std::string& name, std::int64_t stop_after = 0) const {
    std::int64_t seen = 0;
    std::vector<std::string> unreadable;
    const bool done = make_latent_cache(
        pictures(), vae, 8, folder_.file(name), [&](double) { return ++seen != stop_after; }, unreadable);
    EXPECT_EQ(unreadable, std::vector<std::string>());
    return done;
  }

  TempFolder folder_;
};

TEST_F(LatentCache, HoldsTheDistributionsOfPicturesAndMirrorImages) {
  const models::Vae vae = random_vae(1);
  ASSERT_TRUE(make(vae, "cache"));
  const LatentSource source(folder_.file("cache"));
  ASSERT_EQ(source.size(), 5);
  EXPECT_EQ(source.shape(), (std::vector<std::int64_t>{3, 4, 4}));
  EXPECT_EQ(source.classes(), (std::vector<std::string>{"a", "b"}));
  const ImageFolder folder = pictures();
  for (const std::int64_t i : {0, 4}) {
    EXPECT_EQ(source.label(i), i < 2 ? 0 : 1);
    for (const bool flip : {false, true}) {
      Tensor picture = folder_picture(folder, i, 8).to(at::kFloat) / 127.5 - 1;
      if (flip) picture = picture.flip({2});
      const auto wanted = vae.encode(picture.unsqueeze(0));
      const Tensor deviation = at::exp(wanted.log_variance[0] / 2) * 0.4, mean = (wanted.mean[0] - 0.1) * 0.4;
      constexpr std::int64_t kDraws = 4000;
      const at::Generator random = at::detail::createCPUGenerator(9);
      std::vector<Tensor> draws;
      for (std::int64_t draw = 0; draw < kDraws; ++draw) draws.push_back(source.example(i, flip, random));
      const Tensor standard = (at::stack(draws) - mean) / deviation;  // normal(0, 1), 48 values
      EXPECT_LT(standard.mean(0).abs().max().item<double>(), 5 / std::sqrt(static_cast<double>(kDraws)));
      EXPECT_LT((standard.std(0) - 1).abs().max().item<double>(), 0.06);
    }
  }
}

TEST_F(LatentCache, GoesOnWhereItStopped) {
  const models::Vae vae = random_vae(1);
  ASSERT_TRUE(make(vae, "whole"));
  EXPECT_FALSE(make(vae, "part", 2));
  EXPECT_NE(error_of([&] { LatentSource(folder_.file("part")); }).find("no finished latent cache"), std::string::npos);
  // A crash in the middle of a picture.
  const std::string part = folder_.file("part/latents.npy.part");
  std::filesystem::resize_file(part, std::filesystem::file_size(part) - 5);
  EXPECT_TRUE(make(vae, "part"));
  EXPECT_EQ(io::read_file(folder_.file("part/latents.npy")), io::read_file(folder_.file("whole/latents.npy")));
  EXPECT_TRUE(make(vae, "part"));  // nothing left to do
}

TEST_F(LatentCache, LeavesOutPicturesThatCannotBeRead) {
  const models::Vae vae = random_vae(1);
  ASSERT_TRUE(make(vae, "whole"));
  const std::string broken = folder_.file("data/b/2.png");
  std::filesystem::resize_file(broken, 20);
  std::vector<std::string> unreadable;
  ASSERT_TRUE(make_latent_cache(pictures(), vae, 8, folder_.file("cache"), {}, unreadable));
  ASSERT_EQ(unreadable.size(), 1);
  EXPECT_NE(unreadable[0].find("2.png"), std::string::npos);
  const LatentSource some(folder_.file("cache")), all(folder_.file("whole"));
  const auto pixels = load_pictures(pictures(), 8, {}, unreadable);
  EXPECT_EQ(unreadable.size(), 2);
  ASSERT_EQ(some.size(), 4);
  ASSERT_EQ(pixels->size(), 4);
  const at::Generator random = at::detail::createCPUGenerator(9), again = at::detail::createCPUGenerator(9);
  for (const std::int64_t i : {0, 1, 2, 3}) {
    const std::int64_t before = i < 2 ? i : i + 1;
    EXPECT_EQ(some.label(i), all.label(before));
    EXPECT_TRUE(at::equal(some.example(i, true, random), all.example(before, true, again)));
    EXPECT_EQ(pixels->label(i), some.label(i));
    EXPECT_TRUE(at::equal(pixels->example(i, false, random),
                          folder_picture(pictures(), before, 8).to(at::kFloat) / 127.5 - 1.0));
  }
  for (const char* name : {"a/0", "a/1", "b/3", "b/4"}) {
    std::filesystem::resize_file(folder_.file(std::string("data/") + name + ".png"), 20);
  }
  EXPECT_NE(error_of([&] { load_pictures(pictures(), 8, {}, unreadable); }).find("none of the 5"), std::string::npos);
}

TEST_F(LatentCache, RefusesAnotherOrigin) {
  ASSERT_TRUE(make(random_vae(1), "cache"));
  EXPECT_NE(error_of([&] { make(random_vae(2), "cache"); }).find("another `autoencoder`"), std::string::npos);
  const auto other_size = [&] {
    std::vector<std::string> unreadable;
    make_latent_cache(
        pictures(), random_vae(1), 16, folder_.file("cache"), [](double) { return true; }, unreadable);
  };
  EXPECT_NE(error_of(other_size).find("another `picture_size`"), std::string::npos);
  const std::string latents = folder_.file("cache/latents.npy");
  std::filesystem::resize_file(latents, std::filesystem::file_size(latents) / 2);
  EXPECT_NE(error_of([&] { LatentSource(folder_.file("cache")); }), "");
}

}  // namespace
}  // namespace moh::data
