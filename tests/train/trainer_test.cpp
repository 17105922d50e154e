// Training: same seed, same loss to the bit; stop and resume equals no stop; accumulation; the schedule; distillation.
#include "moh/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "moh/base/error.h"
#include "moh/io/npy.h"
#include "moh/ops/autocast.h"
#include "moh/train/language_task.h"
#include "moh/train/schedule.h"

namespace {

namespace fs = std::filesystem;
using moh::Json;
using namespace moh::train;

class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("moh_trainer_" + std::to_string(getpid()));
    fs::create_directories(folder_);
    // A stream with structure: each id follows from the one before, with noise.
    std::vector<std::uint16_t> ids(4000);
    std::uint32_t state = 1, id = 0;
    for (auto& out : ids) {
      state = state * 1664525 + 1013904223;
      id = (state >> 28) == 0 ? (state >> 8) % 60 : (id * 7 + 3) % 60;
      out = static_cast<std::uint16_t>(id);
    }
    data_ = folder_ / "ids.npy";
    moh::io::write_npy(data_, "u2", {static_cast<std::int64_t>(ids.size())}, std::as_bytes(std::span(ids)));
  }
  void TearDown() override { fs::remove_all(folder_); }

  static moh::models::LlamaConfig tiny(const std::string& router) {
    moh::models::LlamaConfig config = moh::models::llama_preset("llm-tiny");
    config.vocab_size = 64;
    config.hidden_size = 32;
    config.intermediate_size = 64;
    config.num_hidden_layers = 2;
    config.num_attention_heads = config.num_key_value_heads = 4;
    config.head_dim = 8;
    config.moh = moh::models::make_moh_config(2, 4, 0.75, std::nullopt, std::nullopt, router);
    return config;
  }

  TrainConfig config(std::int64_t steps) const {
    TrainConfig config;
    config.steps = steps;
    config.batch = 4;
    config.warmup = 2;
    config.lr = 3e-3;
    config.log_every = 1;
    config.validate_every = 0;
    config.checkpoint_every = 5;
    config.seed = 11;
    return config;
  }

  // Trains and gives the logged losses; stops after `stop_at` steps if that is not zero.
  std::vector<double> train(TrainConfig train_config, const std::string& name, const std::string& router = "norm",
                            std::int64_t stop_at = 0, bool resume = false, bool distill = false,
                            LanguageTaskOptions options = {}) {
    const std::string out = folder_ / name;
    const std::string checkpoint = resume ? newest_checkpoint(out) : "";
    auto model =
        resume ? moh::models::Llama::load(checkpoint) : moh::models::Llama::initialize(tiny(router), train_config.seed);
    options.sequence = 24;
    options.seed = train_config.seed;
    options.autocast = moh::ops::autocast_type(train_config.dtype);
    std::optional<moh::models::Llama> teacher;
    if (distill) teacher = moh::models::Llama::initialize(tiny(router), 99);
    auto stream = moh::data::TokenStream::open(data_, nullptr, 64);
    LanguageTask task(std::move(model), stream, stream, std::move(teacher), options);
    std::atomic<bool> stop{false};
    Trainer trainer(train_config, task, out,
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

  fs::path folder_;
  std::string data_;
};

TEST_F(TrainerTest, SameSeedSameLossToTheBitAndItFalls) {
  for (const std::string router : {"norm", "two-stage"}) {
    at::set_num_threads(2);
    const auto first = train(config(40), router + "_a", router), second = train(config(40), router + "_b", router);
    ASSERT_EQ(first.size(), 40U);
    EXPECT_EQ(first, second);
    EXPECT_LT(first.back(), first.front() - 1.0) << "the structure of the stream must be learned";
    auto other = config(3);
    other.seed = 12;
    EXPECT_NE(train(other, router + "_c", router)[0], first[0]);
  }
}

TEST_F(TrainerTest, StopAndResumeEqualsNoStop) {
  for (const std::string dtype : {"fp32", "bf16"}) {
    auto settings = config(12);
    settings.dtype = dtype;
    const auto whole = train(settings, dtype + "_whole");
    train(settings, dtype + "_parts", "norm", /*stop_at=*/7);
    EXPECT_TRUE(fs::exists(folder_ / (dtype + "_parts") / "checkpoints" / "step-7"));
    const auto parts = train(settings, dtype + "_parts", "norm", 0, /*resume=*/true);
    EXPECT_EQ(whole, parts);
    const auto a = moh::io::load_tensors(folder_ / (dtype + "_whole"));
    const auto b = moh::io::load_tensors(folder_ / (dtype + "_parts"));
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i].second, b[i].second)) << a[i].first;
  }
}

TEST_F(TrainerTest, KeepsTheLastCheckpointsAlone) {
  auto settings = config(12);
  settings.checkpoint_every = 2;
  settings.keep = 3;
  train(settings, "keep");
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "keep" / "checkpoints"))
    names.insert(entry.path().filename());
  EXPECT_EQ(names, (std::set<std::string>{"step-8", "step-10", "step-12"}));
}

TEST_F(TrainerTest, AccumulatedPartsEqualTheWholeBatch) {
  auto settings = config(3);
  const auto whole = train(settings, "whole");
  settings.accumulate = 4;
  const auto parts = train(settings, "parts");
  // The load-balance loss is taken over the tokens of a part, so later losses differ a little.
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(parts[i], whole[i], 2e-3);
}

TEST_F(TrainerTest, DistillationFallsTowardsTheTeacher) {
  train(config(30), "distill", "norm", 0, false, /*distill=*/true);
  std::ifstream log(folder_ / "distill" / "log.jsonl");
  std::vector<double> divergence;
  for (std::string line; std::getline(log, line);) {
    const Json entry = Json::parse(line);
    if (entry.contains("distill_loss")) divergence.push_back(entry["distill_loss"].get<double>());
  }
  ASSERT_EQ(divergence.size(), 30U);
  EXPECT_GT(divergence.front(), 0);
  EXPECT_LT(divergence.back(), divergence.front());
}

TEST_F(TrainerTest, HiddenStatesAreDistilledToo) {
  // With the hidden states' distance alone (no weight on logits would leave cross-entropy) divergence falls as well.
  LanguageTaskOptions options;
  options.distill_hidden = 10;
  const auto plain = train(config(30), "logits", "norm", 0, false, /*distill=*/true);
  const auto hidden = train(config(30), "hidden", "norm", 0, false, /*distill=*/true, options);
  EXPECT_NE(plain.back(), hidden.back());
  const auto distance = [&](const std::string& name) {
    const auto teacher = moh::models::Llama::initialize(tiny("norm"), 99);
    const auto student = moh::models::Llama::load(folder_ / name);
    const auto ids = moh::data::TokenStream::open(data_, nullptr, 64).windows({0, 500, 1000}, 24).narrow(1, 0, 24);
    const auto ours = student.forward({.ids = ids}).last_hidden, theirs = teacher.forward({.ids = ids}).last_hidden;
    return (ours - theirs).square().mean().item<double>();
  };
  EXPECT_LT(distance("hidden"), distance("logits"));
  auto larger = tiny("norm");
  larger.hidden_size = 40;
  auto stream = moh::data::TokenStream::open(data_, nullptr, 64);
  options.sequence = 24;
  EXPECT_THROW(LanguageTask(moh::models::Llama::initialize(tiny("norm"), 1), stream, stream,
                            moh::models::Llama::initialize(larger, 1), options),
               moh::Error);
}

TEST_F(TrainerTest, RandomSharesStayInRangeAndResumeToTheBit) {
  LanguageTaskOptions options;
  options.random_share_min = 0.5;
  auto settings = config(16);
  const auto whole = train(settings, "shares", "norm", 0, false, false, options);
  train(settings, "shares_parts", "norm", /*stop_at=*/7, false, false, options);
  EXPECT_EQ(whole, train(settings, "shares_parts", "norm", 0, /*resume=*/true, false, options));
  std::set<double> shares;
  std::ifstream log(folder_ / "shares" / "log.jsonl");
  for (std::string line; std::getline(log, line);) {
    const Json entry = Json::parse(line);
    if (entry.contains("loss")) shares.insert(std::round(entry["active_heads"].get<double>() * 1000) / 1000);
  }
  EXPECT_GE(shares.size(), 3U);
  EXPECT_GE(*shares.begin(), 0.5);
  const auto saved = moh::models::Llama::load(folder_ / "shares");
  EXPECT_DOUBLE_EQ(saved.config().activated_share(), 0.75) << "the saved model keeps its own share";
  options.random_share_min = 0.9;
  options.random_share_max = 0.5;
  EXPECT_THROW(train(settings, "wrong", "norm", 0, false, false, options), moh::Error);
}

TEST_F(TrainerTest, LossThatIsNotFiniteIsOneErrorAndTheCheckpointStays) {
  auto settings = config(20);
  settings.lr = 1e30;
  settings.warmup = 6;
  settings.clip = 0;
  try {
    train(settings, "diverge");
    FAIL() << "must not train with such a learning rate";
  } catch (const moh::Error& error) {
    EXPECT_NE(std::string(error.what()).find("not finite"), std::string::npos) << error.what();
  }
}

// One weight; the gradient passes through fp16, where 2^-30 rounds to zero, or is too large once scaled.
class OneWeight : public Task {
 public:
  explicit OneWeight(double gradient) : gradient_(gradient) {
    parameters_.emplace_back("w", at::zeros({1}, at::kFloat).set_requires_grad(true));
  }
  const moh::io::NamedTensors& parameters() const override { return parameters_; }
  std::vector<bool> decays() const override { return {false}; }
  std::string unit() const override { return "tokens"; }
  BatchLoss loss(std::int64_t, std::int64_t) override {
    BatchLoss result;
    result.objective = (parameters_[0].second * 1024.0).to(at::kHalf).to(at::kFloat).sum() * (gradient_ / 1024.0);
    result.items = 1;
    return result;
  }
  std::optional<Validation> validate() override { return std::nullopt; }
  void save_model(const std::string& folder) const override {
    moh::io::save_tensors(folder + "/model.safetensors", parameters_);
  }
  float weight() const { return parameters_[0].second.item<float>(); }

 private:
  double gradient_;
  moh::io::NamedTensors parameters_;
};

class LossScaleTest : public TrainerTest {
 protected:
  // Lines of log.jsonl after `steps` steps.
  std::vector<Json> run(OneWeight& task, const std::string& dtype, std::int64_t steps, const std::string& name,
                        bool resume = false) const {
    TrainConfig train_config = config(steps);
    train_config.dtype = dtype;
    train_config.batch = 1;
    train_config.clip = 0;
    const std::string out = folder_ / name;
    Trainer trainer(train_config, task, out, {});
    if (resume) trainer.resume(newest_checkpoint(out));
    trainer.run(std::atomic<bool>(false));
    std::vector<Json> entries;
    std::ifstream log(out + "/log.jsonl");
    for (std::string line; std::getline(log, line);) entries.push_back(Json::parse(line));
    return entries;
  }
};

TEST_F(LossScaleTest, SmallGradientsSurviveFp16) {
  const double tiny = std::ldexp(1.0, -20);  // of 2^-30 inside
  OneWeight plain(tiny), scaled(tiny);
  run(plain, "bf16", 3, "plain");
  const auto log = run(scaled, "fp16", 3, "scaled");
  EXPECT_EQ(plain.weight(), 0);
  EXPECT_LT(scaled.weight(), 0);
  EXPECT_EQ(log.back()["loss_scale"], 65536);
  EXPECT_EQ(log.back()["skipped_steps"], 0);
  EXPECT_DOUBLE_EQ(log.back()["grad_norm"].get<double>(), tiny);  // of the loss itself, without the scale
}

TEST_F(LossScaleTest, OverflowLeavesTheStepOutAndHalvesTheScale) {
  // Inside fp16 the gradient is 2^6 times the scale: above 2^16 it overflows.
  OneWeight task(std::ldexp(1.0, 16));
  const auto log = run(task, "fp16", 9, "overflow");
  EXPECT_EQ(log[0]["loss_scale"], 32768);
  EXPECT_FALSE(log[0].contains("grad_norm"));
  EXPECT_EQ(log.back()["loss_scale"], 512);  // 2^6 * 2^9 fits
  EXPECT_EQ(log.back()["skipped_steps"], 7);
  EXPECT_LT(task.weight(), 0);

  OneWeight half(std::ldexp(1.0, 16)), rest(std::ldexp(1.0, 16));
  run(half, "fp16", 5, "resumed");
  const auto resumed = run(rest, "fp16", 9, "resumed", /*resume=*/true);
  EXPECT_EQ(resumed.back()["loss_scale"], 512);
  EXPECT_EQ(resumed.back()["skipped_steps"], 7);
  EXPECT_EQ(rest.weight(), task.weight());  // no step before the checkpoint moved it

  OneWeight hopeless(std::ldexp(1.0, 60));
  std::string complaint;
  try {
    run(hopeless, "fp16", 40, "hopeless");
  } catch (const moh::Error& error) {
    complaint = error.what();
  }
  EXPECT_NE(complaint.find("the gradient of step"), std::string::npos) << complaint;
}

TEST(Schedule, WarmsUpAndFallsToTheFinalShare) {
  const Schedule schedule{.peak = 1e-3, .final_share = 0.1, .warmup = 10, .steps = 110};
  EXPECT_DOUBLE_EQ(schedule(0), 1e-7);
  EXPECT_DOUBLE_EQ(schedule(10), 1e-3);
  EXPECT_NEAR(schedule(109), 1e-4, 1e-12);
  EXPECT_NEAR(schedule(59) + schedule(60), 2 * 0.55e-3, 1e-5);  // half-way
}

TEST(TrainConfig, SaysWhatIsWrong) {
  TrainConfig config;
  config.batch = 3;
  config.accumulate = 2;
  EXPECT_THROW(check_train_config(config), moh::Error);
  EXPECT_THROW(moh::ops::autocast_type("int8"), moh::Error);
}

}  // namespace
