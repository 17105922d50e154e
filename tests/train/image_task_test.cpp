#include "moh/train/image_task.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "moh/data/random.h"
#include "moh/io/files.h"
#include "moh/train/trainer.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::train {
namespace {

using test::error_of;
using test::TempFolder;

// Three classes that a colour tells apart, `count` pictures each.
void write_pictures(const std::string& root, int count) {
  data::Random random(1);
  for (int label = 0; label < 3; ++label) {
    const std::string folder = root + "/class" + std::to_string(label);
    std::filesystem::create_directories(folder);
    for (int i = 0; i < count; ++i) {
      io::Image image{20, 18, {}};
      for (int p = 0; p < 20 * 18; ++p) {
        for (int c = 0; c < 3; ++c) {
          image.rgb.push_back(static_cast<std::uint8_t>((c == label ? 180 : 40) + random.below(40)));
        }
      }
      io::save_png(folder + "/" + std::to_string(i) + ".png", image);
    }
  }
}

models::VitConfig config() {
  models::VitConfig config;
  config.image_size = 16;
  config.patch_size = 2;
  config.num_classes = 3;
  config.embed_dims = {8, 16};
  config.num_heads = {2, 4};
  config.depths = {1, 1};
  config.sr_ratios = {2, 1};
  config.mlp_ratios = {2, 2};
  config.drop_path = 0.1;
  config.crop = 1;
  config.moh = models::VitMohConfig{.shared_heads = {1, 2}, .top_k = {1, 1}};
  return config;
}

ImageTaskOptions options(int workers) {
  ImageTaskOptions options;
  options.seed = 5;
  options.workers = workers;
  options.augment.repeats = 2;
  options.augment.crop_min = 0.5;
  return options;
}

TrainConfig train_config(std::int64_t steps) {
  TrainConfig train;
  train.steps = steps;
  train.batch = 6;
  train.lr = 3e-3;
  train.warmup = 2;
  train.log_every = 1;
  train.validate_every = 0;
  train.checkpoint_every = 3;
  return train;
}

void seed_default_generator(std::uint64_t seed) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  generator.set_current_seed(seed);
}

ImageTask make_task(const std::string& root, int workers, models::Vit model) {
  seed_default_generator(5);
  return {std::move(model), data::ImageFolder::open(root), data::ImageFolder::open(root), options(workers)};
}

TEST(ImageTask, EveryEpochVisitsRepeatsOfAShareOfThePictures) {
  const TempFolder folder;
  write_pictures(folder.path(), 4);
  ImageTask task = make_task(folder.path(), 0, models::Vit::initialize(config(), 1));
  std::map<std::int64_t, int> first, second;
  for (std::int64_t i = 0; i < 12; ++i) ++first[task.picture_at(i)];
  for (std::int64_t i = 12; i < 24; ++i) ++second[task.picture_at(i)];
  EXPECT_EQ(first.size(), 6u);
  for (const auto& [picture, count] : first) EXPECT_EQ(count, 2);
  EXPECT_EQ(task.picture_at(0), task.picture_at(1));
  EXPECT_NE(first, second);
}

TEST(ImageTask, LearnsAndValidates) {
  const TempFolder folder;
  write_pictures(folder.path(), 8);
  const TempFolder out;
  ImageTask task = make_task(folder.path(), 2, models::Vit::initialize(config(), 1));
  TrainConfig train = train_config(60);
  Json last;
  Trainer trainer(train, task, out.path(), {.on_log = [&](const Json& line) { last = line; }});
  ASSERT_TRUE(trainer.run({false}));
  EXPECT_GE(last["valid_top1"].get<double>(), 0.9) << last;
  EXPECT_EQ(last["valid_top5"].get<double>(), 1);
  EXPECT_TRUE(last.contains("loader_share"));
  EXPECT_GT(last["load_balance_loss"].get<double>(), 0);
  EXPECT_NEAR(last["active_heads"].get<double>(), 5.0 / 6, 1e-6);  // 2 of 2 and 3 of 4
  EXPECT_EQ(models::Vit::load(out.path()).num_parameters(), task.model().num_parameters());
}

// Stopped after three steps and resumed, with other numbers of workers, the weights are the same to the bit.
TEST(ImageTask, ResumeEqualsNoStop) {
  const TempFolder folder, straight, stopped;
  write_pictures(folder.path(), 4);
  {
    ImageTask task = make_task(folder.path(), 1, models::Vit::initialize(config(), 1));
    Trainer(train_config(6), task, straight.path(), {}).run({false});
  }
  {
    ImageTask task = make_task(folder.path(), 2, models::Vit::initialize(config(), 1));
    std::atomic<bool> stop = false;
    Trainer trainer(train_config(6), task, stopped.path(),
                    {.on_step = [&](const Trainer::Pace& pace) { stop = pace.step == 3; }});
    ASSERT_FALSE(trainer.run(stop));
  }
  const std::string checkpoint = newest_checkpoint(stopped.path());
  ImageTask task = make_task(folder.path(), 0, models::Vit::load(checkpoint));
  Trainer trainer(train_config(6), task, stopped.path(), {});
  trainer.resume(checkpoint);
  ASSERT_TRUE(trainer.run({false}));
  const auto expected = io::load_tensors(straight.path()), got = io::load_tensors(stopped.path());
  ASSERT_EQ(expected.size(), got.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(at::equal(expected[i].second, got[i].second)) << expected[i].first;
  }
}

TEST(ImageTask, SkipsBrokenPicturesAndSaysSo) {
  const TempFolder folder, out;
  write_pictures(folder.path(), 4);
  io::write_file(folder.file("class1/0.png"), std::string_view("not a picture"));
  ImageTask task = make_task(folder.path(), 2, models::Vit::initialize(config(), 1));
  Json last;
  Trainer trainer(train_config(8), task, out.path(), {.on_log = [&](const Json& line) { last = line; }});
  ASSERT_TRUE(trainer.run({false}));
  EXPECT_EQ(last["skipped"].get<double>(), 1);
  ASSERT_EQ(task.skipped().size(), 1u);
  EXPECT_NE(task.skipped()[0].find("class1/0.png"), std::string::npos);
  const auto result = eval::classify_folder(task.model(), data::ImageFolder::open(folder.path()), {});
  EXPECT_EQ(result.images, 11);
  EXPECT_EQ(result.skipped.size(), 1u);
  ASSERT_EQ(result.head_load.size(), 3u);
  EXPECT_EQ(result.head_load_layer, "block2.0.attn");
  for (const auto& row : result.head_load) EXPECT_NEAR(row[0] + row[1], 1, 1e-9);  // one of two routed heads a token
}

TEST(ImageTask, RefusesAnotherNumberOfClasses) {
  const TempFolder folder;
  write_pictures(folder.path(), 1);
  models::VitConfig four = config();
  four.num_classes = 4;
  EXPECT_NE(error_of([&] {
              make_task(folder.path(), 0, models::Vit::initialize(four, 1));
            }).find("has 3 class folders, but the model tells 4 classes apart"),
            std::string::npos);
}

}  // namespace
}  // namespace moh::train
