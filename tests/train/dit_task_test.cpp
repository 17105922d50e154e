// DiT training: same seed, same loss to the bit; stop and resume equals no stop, averaged weights included; it learns.
#include "moh/train/dit_task.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "moh/generate/pictures.h"
#include "moh/models/dit_folder.h"
#include "moh/ops/autocast.h"
#include "moh/train/ema.h"
#include "moh/train/trainer.h"
#include "tests/base/error_of.h"

namespace moh::train {
namespace {

namespace fs = std::filesystem;
using at::Tensor;
using test::error_of;

class DitTaskTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("moh_dit_task_" + std::to_string(getpid()));
    fs::create_directories(folder_);
    at::set_num_threads(1);  // so small a model only waits for its threads, long on a busy machine
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Two classes: light on the left, light on the right.
  static std::shared_ptr<const data::PictureSource> pictures() {
    Tensor pixels = at::full({12, 3, 8, 8}, 40, at::kByte);
    std::vector<std::int64_t> labels;
    for (std::int64_t i = 0; i < 12; ++i) {
      labels.push_back(i % 2);
      pixels[i].narrow(2, i % 2 == 0 ? 0 : 4, 4).fill_(200 + i);
    }
    return std::make_shared<data::PixelSource>(pixels, labels, std::vector<std::string>{"left", "right"});
  }

  static models::DitConfig tiny() {
    models::DitConfig config = models::dit_preset("moh-dit-pixel-tiny");
    config.input_size = 8;
    config.patch_size = 4;
    config.hidden_size = 32;
    config.depth = 2;
    config.head_dim = 8;
    config.num_heads = {4, 4};
    config.moh->shared_heads = {2, 1};
    config.moh->top_k = {1, 2};
    config.num_classes = 2;
    return config;
  }

  static TrainConfig settings(std::int64_t steps) {
    TrainConfig config;
    config.steps = steps;
    config.batch = 6;
    config.lr = 2e-3;
    config.final_lr = 1;
    config.warmup = 0;
    config.weight_decay = 0;
    config.clip = 0;
    config.ema = 0.9;
    config.log_every = 1;
    config.validate_every = 0;
    config.checkpoint_every = 4;
    config.seed = 5;
    return config;
  }

  std::vector<double> train(const TrainConfig& config, const std::string& name, std::int64_t stop_at = 0,
                            bool resume = false) {
    const std::string out = folder_ / name, checkpoint = resume ? newest_checkpoint(out) : "";
    models::Dit model = resume ? models::load_dit(checkpoint, "model")
                               : models::Dit::initialize(tiny(), static_cast<std::uint64_t>(config.seed));
    DitTaskOptions options;
    options.seed = static_cast<std::uint64_t>(config.seed);
    options.autocast = ops::autocast_type(config.dtype);
    options.flip = false;
    options.illustrate_every = 100;
    options.illustrate = [&](const models::Dit& averaged, const std::string&, std::int64_t) {
      ++sheets_;
      EXPECT_EQ(averaged.config().num_classes, 2);
    };
    DitTask task(std::move(model), pictures(), pictures(), options);
    std::atomic<bool> stop{false};
    Trainer trainer(config, task, out,
                    {.on_log = {}, .on_step = [&](const Trainer::Pace& pace) { stop = pace.step == stop_at; }});
    if (resume) trainer.resume(checkpoint);
    EXPECT_EQ(trainer.run(stop), stop_at == 0);
    std::vector<double> losses;
    std::ifstream log(out + "/log.jsonl");
    for (std::string line; std::getline(log, line);) {
      const Json entry = Json::parse(line);
      if (entry.contains("loss")) losses.push_back(entry["loss"].get<double>());
    }
    return losses;
  }

  static void expect_same(const std::string& a, const std::string& b) {
    const auto first = io::load_tensors(a), second = io::load_tensors(b);
    ASSERT_EQ(first.size(), second.size());
    for (std::size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(at::equal(first[i].second, second[i].second)) << first[i].first;
    }
  }

  fs::path folder_;
  int sheets_ = 0;
};

TEST_F(DitTaskTest, StopAndResumeEqualsNoStopToTheBit) {
  for (const std::string dtype : {"fp32", "bf16"}) {
    TrainConfig config = settings(9);
    config.dtype = dtype;
    const auto whole = train(config, dtype + "_whole");
    ASSERT_EQ(whole.size(), 9U);
    train(config, dtype + "_part", /*stop_at=*/6);
    EXPECT_EQ(train(config, dtype + "_part", 0, /*resume=*/true), whole);
    for (const char* file : {"model.safetensors", "ema.safetensors"}) {
      expect_same(folder_ / (dtype + "_whole") / file, folder_ / (dtype + "_part") / file);
    }
    // Averaged and present weights differ; pos_embed is in both.
    const models::Dit averaged = models::load_dit(folder_ / (dtype + "_whole")),
                      present = models::load_dit(folder_ / (dtype + "_whole"), "model");
    EXPECT_TRUE(at::equal(averaged.parameters()[0].second, present.parameters()[0].second));
    EXPECT_FALSE(at::equal(averaged.parameters()[1].second, present.parameters()[1].second));
  }
  EXPECT_NE(error_of([&] { models::load_dit(folder_, "ema"); }).find("config.json"), std::string::npos);
}

TEST_F(DitTaskTest, Learns) {
  TrainConfig config = settings(300);
  config.validate_every = 100;
  const auto losses = train(config, "learns");
  double first = 0, last = 0;
  for (std::size_t i = 0; i < 20; ++i) {
    first += losses[i] / 20;
    last += losses[losses.size() - 1 - i] / 20;
  }
  EXPECT_LT(last, 0.5 * first);
  EXPECT_EQ(sheets_, 3);
  std::ifstream log(folder_ / "learns" / "log.jsonl");
  int validations = 0;
  for (std::string line; std::getline(log, line);) validations += Json::parse(line).contains("valid_loss");
  EXPECT_EQ(validations, 4);  // before the first step too
}

// Whatever it predicts, what a trained model samples is light on one side; with the velocity, which learns the noisiest
// steps sooner, it is the side of the class.
TEST_F(DitTaskTest, SamplesWhatItWasTrainedOn) {
  for (const char* prediction : {"epsilon", "v_prediction"}) {
    models::DitConfig config = tiny();
    config.prediction_type = prediction;
    config.patch_size = 2;  // the noise of 4 x 4 pixels does not fit through so narrow a model
    DitTaskOptions unmirrored;
    unmirrored.flip = false;
    DitTask task(models::Dit::initialize(config, 1), pictures(), nullptr, unmirrored);
    TrainConfig how = settings(800);
    how.ema = 0;
    std::atomic<bool> stop{false};
    Trainer(how, task, folder_ / prediction, {}).run(stop);
    diffusion::Pictures wanted{.numbers = {0, 1, 2, 3}, .labels = {0, 1, 0, 1}, .seed = 3};
    generate::PictureOptions options;
    options.sampler = {.sampler = "dpm++", .steps = "10", .clip = true};
    const models::Dit model = models::load_dit(folder_ / prediction);
    EXPECT_EQ(model.config().prediction_type, prediction);
    const Tensor made = generate::sample_pictures(model, nullptr, options, wanted, {}).to(at::kFloat);
    for (std::int64_t i = 0; i < 4; ++i) {
      const double left = made[i].narrow(1, 0, 4).mean().item<double>(),
                   right = made[i].narrow(1, 4, 4).mean().item<double>();
      EXPECT_GT(std::abs(left - right), 50) << prediction;
      if (config.predicts_velocity()) {
        EXPECT_EQ(left > right, i % 2 == 0) << left << " " << right;
      }
    }
  }
  models::DitConfig config = tiny();
  config.prediction_type = "sample";
  EXPECT_NE(error_of([&] { models::check_dit_config(config, "here"); }).find("`prediction_type` must be epsilon or"),
            std::string::npos);
}

TEST_F(DitTaskTest, ActiveHeadsAndHiddenLabels) {
  DitTask task(models::Dit::initialize(tiny(), 1), pictures(), nullptr, {});
  const auto loss = task.loss(0, 12);
  EXPECT_NEAR(loss.active_heads, 0.75, 1e-9);
  EXPECT_GT(loss.load_balance_loss, 0);
  EXPECT_EQ(loss.items, 12);
  EXPECT_EQ(task.loss(0, 12).loss, loss.loss);
  EXPECT_NE(task.loss(12, 12).loss, loss.loss);
  models::DitConfig three = tiny();
  three.in_channels = 4;
  EXPECT_NE(error_of([&] { DitTask(models::Dit::initialize(three, 1), pictures(), nullptr, {}); }).find("denoises"),
            std::string::npos);
  models::DitConfig one = tiny();
  one.num_classes = 1;
  EXPECT_NE(error_of([&] { DitTask(models::Dit::initialize(one, 1), pictures(), nullptr, {}); }).find("does not fit"),
            std::string::npos);
}

TEST(Ema, IsTheGeometricMean) {
  Tensor value = at::zeros({2}).set_requires_grad(true), frozen = at::ones({1});
  Ema ema({{"value", value}, {"frozen", frozen}}, 0.75);
  double expected = 0;
  for (int step = 1; step <= 4; ++step) {
    value.detach().fill_(static_cast<double>(step));
    ema.update();
    expected = 0.75 * expected + 0.25 * step;
  }
  EXPECT_NEAR(ema.values()[0].second[1].item<double>(), expected, 1e-6);
  EXPECT_EQ(ema.values()[1].second.item<double>(), 1);
  EXPECT_NE(error_of([&] { ema.load({{"value", at::zeros({2})}}); }).find("`frozen`"), std::string::npos);
}

}  // namespace
}  // namespace moh::train
