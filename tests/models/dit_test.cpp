// DiT against the published counts and names, against its formulas written anew with LibTorch in float64, and against
// what must hold whatever the weights are.
#include "moh/models/dit.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "moh/io/files.h"
#include "tests/base/error_of.h"

namespace moh::models {
namespace {

using at::Tensor;
using test::error_of;

DitConfig small_config() {
  DitConfig config = dit_preset("moh-dit-s-2-75");
  config.input_size = 8;
  config.hidden_size = 24;
  config.depth = 3;
  config.head_dim = 6;
  config.num_classes = 5;
  config.num_heads = {4, 2, 6};
  config.moh->shared_heads = {2, 2, 0};
  config.moh->top_k = {1, 0, 3};
  return config;
}

Dit random_dit(const DitConfig& config) {
  at::manual_seed(7);
  io::NamedTensors tensors;
  for (const auto& parameter : dit_parameters(config)) {
    Tensor tensor = at::randn(parameter.shape) * 0.2;
    if (parameter.name == "pos_embed") {
      tensor = dit_positions(config.hidden_size, config.input_size / config.patch_size,
                             config.input_size / config.patch_size);
    }
    tensors.emplace_back(parameter.name, tensor);
  }
  return Dit(config, tensors);
}

TEST(DitPresets, CountsArePublished) {
  const std::map<std::string, std::int64_t> counts = {
      {"moh-dit-s-2-90", 32997152},   {"moh-dit-s-2-75", 32998688},   {"moh-dit-b-2-90", 130638368},
      {"moh-dit-b-2-75", 130638368},  {"moh-dit-l-2-90", 458512416},  {"moh-dit-l-2-75", 458528800},
      {"moh-dit-xl-2-90", 675666464}, {"moh-dit-xl-2-75", 675689504}, {"dit-xl-2", 675129632}};
  for (const auto& [name, count] : counts) EXPECT_EQ(dit_parameter_count(dit_preset(name)), count) << name;
  for (const char* size : {"s-2", "b-2", "l-2", "xl-2"}) {
    const std::string name = size;
    EXPECT_NEAR(dit_preset("moh-dit-" + name + "-75").activated_share(), 0.75, 0.01) << name;
    EXPECT_NEAR(dit_preset("moh-dit-" + name + "-90").activated_share(), 0.9, 0.012) << name;  // S: 64 of 72
    EXPECT_EQ(dit_preset("dit-" + name).activated_share(), 1.0) << name;
    EXPECT_EQ(dit_parameter_count(dit_preset("dit-" + name)) - dit_parameter_count(dit_preset("dit-" + name), true),
              256 * dit_preset("dit-" + name).hidden_size);
  }
}

TEST(DitPresets, NamesAndShapesAreTheAuthors) {
  const std::string file = MOH_SOURCE_DIR "/../shared/golden/official_state_dicts.json";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << file << " is not here";
  const Json official = parse_json(io::read_file(file), file);
  int models = 0;
  for (const auto& item : official.items()) {
    std::string name = item.key();
    if (!name.starts_with("MoH-DiT-")) continue;
    for (char& c : name) c = c == '/' ? '-' : static_cast<char>(std::tolower(c));
    const DitConfig config = dit_preset(name);
    const auto parameters = dit_parameters(config);
    const Json& expected = item.value().at("params");
    ASSERT_EQ(parameters.size(), expected.size()) << name;
    std::size_t i = 0;
    for (const auto& tensor : expected.items()) {
      EXPECT_EQ(parameters[i].name, tensor.key()) << name;
      EXPECT_EQ(Json(parameters[i].shape), tensor.value()) << name << " " << tensor.key();
      ++i;
    }
    EXPECT_EQ(dit_parameter_count(config), item.value().at("total").get<std::int64_t>()) << name;
    EXPECT_EQ(dit_parameter_count(config, true), item.value().at("trainable").get<std::int64_t>()) << name;
    ++models;
  }
  EXPECT_EQ(models, 8);
}

TEST(DitConfig, RoundTripAndErrors) {
  const DitConfig config = small_config();
  const Json json = dit_config_json(config);
  EXPECT_EQ(dit_config_json(parse_dit_config(json, "test")), json);
  const auto error = [&](auto change) {
    Json changed = json;
    change(changed);
    return error_of([&] { parse_dit_config(changed, "test"); });
  };
  EXPECT_NE(error([](Json& j) { j["hiden_size"] = 3; }).find("did you mean `hidden_size`"), std::string::npos);
  EXPECT_NE(error([](Json& j) { j["input_size"] = 7; }).find("multiple of `patch_size`"), std::string::npos);
  EXPECT_NE(error([](Json& j) { j["num_heads"] = {4, 2}; }).find("one per layer"), std::string::npos);
  EXPECT_NE(error([](Json& j) { j["moh"]["top_k"] = 4; }).find("do not fit"), std::string::npos);
  EXPECT_NE(error([](Json& j) { j["depth"] = 1e9; }).find("depth"), std::string::npos);
  EXPECT_NE(error([](Json& j) { j["model_type"] = "llama"; }).find("model_type"), std::string::npos);
}

// Formulas of the DiT paper in float64; gates as the router gives them.
Tensor dit_by_formula(const Dit& model, const Tensor& x, const Tensor& t, const Tensor& y, const DitOutput& gates) {
  std::map<std::string, Tensor> p;
  for (const auto& [name, tensor] : model.parameters()) p[name] = tensor.to(at::kDouble);
  const auto& c = model.config();
  const std::int64_t grid_h = x.size(2) / c.patch_size, grid_w = x.size(3) / c.patch_size;
  const auto linear = [&](const std::string& name, const Tensor& in) {
    return at::matmul(in, p.at(name + ".weight").t()) + p.at(name + ".bias");
  };
  const auto norm = [](const Tensor& in) {
    const Tensor centred = in - in.mean(-1, true);
    return centred / (centred.square().mean(-1, true) + 1e-6).sqrt();
  };
  Tensor tokens =
      at::conv2d(x.to(at::kDouble), p.at("x_embedder.proj.weight"), p.at("x_embedder.proj.bias"), c.patch_size)
          .flatten(2)
          .transpose(1, 2);
  for (std::int64_t row = 0; row < grid_h; ++row) {
    for (std::int64_t column = 0; column < grid_w; ++column) {
      for (std::int64_t i = 0; i < c.hidden_size; ++i) {
        const std::int64_t quarter = c.hidden_size / 4, part = i / quarter;
        const double frequency = std::pow(10000.0, -static_cast<double>(i % quarter) / static_cast<double>(quarter));
        const double angle = static_cast<double>(part < 2 ? column : row) * frequency;
        tokens.select(1, row * grid_w + column).select(1, i).add_(part % 2 == 0 ? std::sin(angle) : std::cos(angle));
      }
    }
  }
  const Tensor frequencies = at::exp(at::arange(128, at::kDouble) * (-std::log(10000.0) / 128));
  const Tensor angle = t.to(at::kDouble).unsqueeze(1) * frequencies;
  const auto silu = [](const Tensor& in) { return in * at::sigmoid(in); };
  const Tensor time =
      linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", at::cat({angle.cos(), angle.sin()}, 1))));
  const Tensor condition = silu(time + p.at("y_embedder.embedding_table.weight").index_select(0, y));
  const auto modulate = [](const Tensor& in, const Tensor& shift, const Tensor& scale) {
    return in * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1);
  };
  for (std::int64_t layer = 0; layer < c.depth; ++layer) {
    const std::string prefix = "blocks." + std::to_string(layer) + ".";
    const auto m = linear(prefix + "adaLN_modulation.1", condition).chunk(6, 1);
    const std::int64_t heads = c.num_heads[layer], n = tokens.size(1);
    const Tensor qkv = linear(prefix + "attn.qkv", modulate(norm(tokens), m[0], m[1]))
                           .reshape({x.size(0), n, 3, heads, c.head_dim})
                           .permute({2, 0, 3, 1, 4});
    const Tensor scores = at::matmul(qkv[0], qkv[1].transpose(-2, -1)) / std::sqrt(static_cast<double>(c.head_dim));
    Tensor attended = at::matmul(at::softmax(scores, -1), qkv[2]).transpose(1, 2);
    if (c.moh) attended = attended * gates.routing[layer].gates.to(at::kDouble).unsqueeze(-1);
    tokens = tokens + m[2].unsqueeze(1) * linear(prefix + "attn.proj", attended.flatten(2));
    const Tensor u = linear(prefix + "mlp.fc1", modulate(norm(tokens), m[3], m[4]));
    const Tensor gelu = 0.5 * u * (1 + at::tanh(std::sqrt(2 / M_PI) * (u + 0.044715 * u.pow(3))));
    tokens = tokens + m[5].unsqueeze(1) * linear(prefix + "mlp.fc2", gelu);
  }
  const auto m = linear("final_layer.adaLN_modulation.1", condition).chunk(2, 1);
  const Tensor patches = linear("final_layer.linear", modulate(norm(tokens), m[0], m[1]));
  Tensor out = at::zeros({x.size(0), c.out_channels(), x.size(2), x.size(3)}, at::kDouble);
  for (std::int64_t row = 0; row < x.size(2); ++row) {
    for (std::int64_t column = 0; column < x.size(3); ++column) {
      const std::int64_t token = row / c.patch_size * grid_w + column / c.patch_size;
      const std::int64_t inside = row % c.patch_size * c.patch_size + column % c.patch_size;
      out.select(3, column).select(2, row).copy_(
          patches.select(1, token).narrow(1, inside * c.out_channels(), c.out_channels()));
    }
  }
  return out;
}

TEST(Dit, FollowsTheFormulaAtAnySize) {
  const c10::NoGradGuard no_grad;
  DitConfig config = small_config();
  for (const bool dense : {false, true}) {
    if (dense) config.moh.reset();
    const Dit model = random_dit(config);
    for (const auto& [height, width] : {std::pair{8, 8}, std::pair{8, 12}, std::pair{2, 6}}) {
      const Tensor x = at::randn({3, 4, height, width});
      const Tensor t = at::tensor({0, 17, 999}, at::kLong), y = at::tensor({0, 4, 5}, at::kLong);
      const auto output = model.forward(x, t, y, /*balance_loss=*/true);
      const Tensor expected = dit_by_formula(model, x, t, y, output);
      EXPECT_LT((output.y - expected).abs().max().item<double>(), 2e-4) << height << " x " << width << " " << dense;
      EXPECT_EQ(output.load_balance_loss.defined(), !dense);
    }
  }
}

TEST(Dit, NewModelPredictsNothingAndIsSeeded) {
  const c10::NoGradGuard no_grad;
  const DitConfig config = small_config();
  const Dit model = Dit::initialize(config, 3), again = Dit::initialize(config, 3), other = Dit::initialize(config, 4);
  const auto output =
      model.forward(at::randn({2, 4, 8, 8}), at::tensor({5, 900}, at::kLong), at::zeros({2}, at::kLong));
  EXPECT_EQ(output.y.abs().max().item<double>(), 0);
  bool differs = false;
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    EXPECT_TRUE(at::equal(model.parameters()[i].second, again.parameters()[i].second));
    differs |= !at::equal(model.parameters()[i].second, other.parameters()[i].second);
  }
  EXPECT_TRUE(differs);
}

TEST(Dit, Errors) {
  const c10::NoGradGuard no_grad;
  const Dit model = random_dit(small_config());
  const Tensor x = at::randn({1, 4, 8, 8}), t = at::zeros({1}, at::kLong);
  const auto forward_error = [&](const Tensor& in, std::int64_t label) {
    return error_of([&] { model.forward(in, t, at::full({1}, label, at::kLong)); });
  };
  EXPECT_NE(forward_error(x, 6).find("classes must be in 0..5"), std::string::npos);
  EXPECT_NE(forward_error(x, -1).find("classes must be in 0..5"), std::string::npos);
  EXPECT_NE(forward_error(at::randn({1, 4, 7, 8}), 0).find("multiples of the patch size"), std::string::npos);
  EXPECT_NE(forward_error(at::randn({1, 3, 8, 8}), 0).find("x must be"), std::string::npos);
  auto tensors = model.parameters();
  tensors.pop_back();
  EXPECT_NE(error_of([&] { Dit(small_config(), tensors); }).find("is missing"), std::string::npos);
  tensors = model.parameters();
  tensors.emplace_back("extra", at::ones({1}));
  EXPECT_NE(error_of([&] { Dit(small_config(), tensors); }).find("`extra`"), std::string::npos);
  tensors = model.parameters();
  tensors[3].second = at::ones({2, 2});
  EXPECT_NE(error_of([&] { Dit(small_config(), tensors); }).find("must be"), std::string::npos);
}

}  // namespace
}  // namespace moh::models
