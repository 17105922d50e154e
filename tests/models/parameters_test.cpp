// The list of a model's tensors: what it takes, refuses, binds, counts and saves.
#include "moh/models/parameters.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "moh/base/error.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::models {
namespace {

using at::Tensor;
using test::error_of;

const Parameters::Owner kOwner{.model = "toy", .is_derived = [](const std::string& name) { return name == "table"; }};

ParameterSpecs specs() {
  return {{"a.weight", {3, 2}},
          {"a.bias", {3}, /*decays=*/false},
          {.name = "positions", .shape = {4}, .trained = false},
          {.name = "head.weight", .shape = {3, 2}, .tied_to = "a.weight"}};
}

io::NamedTensors tensors() {  // in another order than the list
  return {{"positions", at::arange(4, at::kFloat)},
          {"a.bias", at::tensor({1.0F, 2.0F, 3.0F})},
          {"a.weight", at::arange(6, at::kFloat).reshape({3, 2})}};
}

TEST(Parameters, AreTheListsInItsOrderAndTiedOnesOnce) {
  auto all = tensors();
  all.emplace_back("head.weight", at::zeros({3, 2}));  // some checkpoints have it twice
  all.emplace_back("table", at::zeros({1}, at::kLong));
  Parameters parameters(kOwner, specs(), all);
  ASSERT_EQ(parameters.tensors().size(), 3u);
  EXPECT_EQ(parameters.tensors()[0].first, "a.weight");
  EXPECT_EQ(parameters.count(), 13);
  EXPECT_EQ(parameter_count(specs(), /*trained_only=*/true), 9);
  EXPECT_EQ(parameters.decays(), (std::vector<bool>{true, false, true}));
  EXPECT_TRUE(parameters["head.weight"].is_same(parameters["a.weight"]));
  EXPECT_FALSE(parameters.find("b.weight").has_value());
  EXPECT_NE(error_of([&] { parameters["b.weight"]; }).find("`b.weight`"), std::string::npos);
  parameters.set_requires_grad(true);
  EXPECT_TRUE(parameters["a.bias"].requires_grad());
  EXPECT_FALSE(parameters["positions"].requires_grad());
  const Tensor x = at::tensor({1.0F, 1.0F}).unsqueeze(0);
  EXPECT_TRUE(at::equal(parameters.linear("a")(x), at::tensor({2.0F, 7.0F, 12.0F}).unsqueeze(0)));
  EXPECT_TRUE(
      at::equal(parameters.linear("head")(x), at::tensor({1.0F, 5.0F, 9.0F}).unsqueeze(0)));  // no bias of its own
}

TEST(Parameters, NameWhatDoesNotFit) {
  const auto refused = [](const std::function<void(io::NamedTensors&)>& change) {
    auto all = tensors();
    change(all);
    return error_of([&] { Parameters(kOwner, specs(), all); });
  };
  EXPECT_EQ(refused([](auto& all) { all.erase(all.begin() + 1); }),
            "[toy] tensor `a.bias` is missing from the checkpoint");
  EXPECT_EQ(refused([](auto& all) { all[1].second = at::zeros({4}); }),
            "[toy] tensor `a.bias` must be [3] by config.json, got [4]");
  EXPECT_NE(refused([](auto& all) { all[1].second = at::zeros({3}, at::kLong); }).find("floating"), std::string::npos);
  EXPECT_EQ(refused([](auto& all) { all.emplace_back("b", at::zeros({1})); }),
            "[toy] tensor `b` of the checkpoint has no place in the model of config.json");
}

TEST(Parameters, SaveAndChooseWeights) {
  const test::TempFolder folder;
  const Parameters parameters(kOwner, specs(), tensors());
  const std::string path = folder.file("new/model");
  parameters.save(path, {{"key", 1}});
  EXPECT_EQ(io::load_config(path), (Json{{"key", 1}}));
  const auto loaded = load_weights(path, "auto", "toy");
  ASSERT_EQ(loaded.size(), 3u);
  EXPECT_TRUE(at::equal(loaded[0].second, parameters["a.weight"]));
  EXPECT_NE(error_of([&] { load_weights(path, "ema", "toy"); }).find("ema.safetensors"), std::string::npos);
  EXPECT_NE(error_of([&] { load_weights(path, "best", "toy"); }).find("auto, ema or model"), std::string::npos);
  io::save_tensors(path + "/ema.safetensors", {{"a.weight", at::zeros({1})}});
  EXPECT_EQ(load_weights(path, "auto", "toy").size(), 1u);
  EXPECT_EQ(load_weights(path, "model", "toy").size(), 3u);
}

}  // namespace
}  // namespace moh::models
