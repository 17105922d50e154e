#include "moh/models/vit.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "moh/io/files.h"
#include "moh/models/vit_checkpoint.h"
#include "moh/models/vit_cost.h"
#include "moh/ops/aggregated_attention.h"
#include "tests/base/error_of.h"
#include "tests/io/temp_folder.h"

namespace moh::models {
namespace {

using at::Tensor;
using test::error_of;
using test::TempFolder;

VitConfig small_config(bool moh = true) {
  VitConfig config;
  config.image_size = 32;
  config.num_classes = 5;
  config.embed_dims = {8, 12, 16};
  config.num_heads = {2, 3, 4};
  config.depths = {1, 2, 1};
  config.sr_ratios = {4, 2, 1};
  config.mlp_ratios = {4, 4, 2};
  if (moh) config.moh = VitMohConfig{.shared_heads = {2, 1, 1}, .top_k = {0, 1, 2}};
  return config;
}

void seed_default_generator(std::uint64_t seed) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  generator.set_current_seed(seed);
}

Tensor images(std::int64_t height, std::int64_t width) {
  return at::empty({2, 3, height, width}, at::kFloat).normal_(0, 1, at::detail::createCPUGenerator(3));
}

TEST(Vit, PresetsHaveThePapersSizes) {
  const struct {
    const char* name;
    std::int64_t parameters;
    double activated;
  } kPresets[] = {{"moh-vit-s-80", 49910548, 343.0 / 429},
                  {"moh-vit-s-75", 49910548, 323.0 / 429},
                  {"moh-vit-b-75", 90020632, 441.0 / 588},
                  {"moh-vit-b-50", 90023512, 294.0 / 588}};
  for (const auto& [name, parameters, activated] : kPresets) {
    const VitConfig config = vit_preset(name);
    check_vit_config(config, name);
    std::int64_t count = 0;
    for (const auto& spec : vit_parameters(config)) {
      std::int64_t size = 1;
      for (const std::int64_t dim : spec.shape) size *= dim;
      count += size;
    }
    EXPECT_EQ(count, parameters) << name;
    EXPECT_EQ(vit_cost(config, 224).parameters, parameters) << name;
    EXPECT_NEAR(config.activated_share(), activated, 1e-12) << name;
    const VitConfig dense = vit_preset(std::string(name).substr(4));
    EXPECT_FALSE(dense.moh);
    EXPECT_EQ(dense.activated_share(), 1);
    for (const auto& spec : vit_parameters(dense)) EXPECT_EQ(spec.name.find(".wg"), std::string::npos);
  }
  EXPECT_NE(error_of([] { vit_preset("moh-vit-s-10"); }).find("moh-vit-s-80"), std::string::npos);
}

// Names and shapes of the authors' models, where their list is at hand.
TEST(Vit, TensorsAreTheAuthors) {
  const std::string file = MOH_SOURCE_DIR "/../shared/golden/official_state_dicts.json";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << file << " is not there";
  const Json official = parse_json(io::read_file(file), file);
  int compared = 0;
  for (const auto& model : official.items()) {
    if (!model.key().starts_with("MoH-ViT-")) continue;
    std::string preset = "moh-vit-" + model.key().substr(8);
    for (char& c : preset) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    const Json& params = model.value().at("params");
    const auto specs = vit_parameters(vit_preset(preset));
    EXPECT_EQ(specs.size(), params.size()) << preset;
    for (const auto& spec : specs) {
      ASSERT_TRUE(params.contains(spec.name)) << preset << ": " << spec.name;
      EXPECT_EQ(params.at(spec.name).get<std::vector<std::int64_t>>(), spec.shape) << preset << ": " << spec.name;
      // The names without weight decay have * for block numbers.
      std::string pattern;
      for (const char c : spec.name) {
        if (!(c >= '0' && c <= '9')) {
          pattern += c;
        } else if (pattern.empty() || pattern.back() != '*') {
          pattern += '*';
        }
      }
      bool listed = false;
      for (const auto& name : model.value().at("no_weight_decay")) {
        std::string plain;  // cpb_fc1 and norm1 keep their digit in the list
        for (const char c : name.get<std::string>()) {
          if (!(c >= '0' && c <= '9')) {
            plain += c;
          } else if (plain.empty() || plain.back() != '*') {
            plain += '*';
          }
        }
        listed |= plain == pattern;
      }
      EXPECT_EQ(spec.decays, !listed) << preset << ": " << spec.name;
      ++compared;
    }
  }
  EXPECT_GT(compared, 4000);
}

// Its numbers are compared in tests/bench/plain_vit_test.cpp.
TEST(Vit, TakesAnySize) {
  for (const bool moh : {true, false}) {
    const Vit model = Vit::initialize(small_config(moh), 1);
    const c10::NoGradGuard no_grad;
    for (const auto& [height, width] : {std::pair{32, 32}, {64, 40}, {33, 47}, {5, 9}}) {
      const auto ours = model.forward({.images = images(height, width)});
      EXPECT_EQ(ours.logits.sizes(), (at::IntArrayRef{2, 5}));
      EXPECT_EQ(ours.layers.size(), 4u);
      EXPECT_EQ(ours.layer_losses.size(), 0u);  // nobody asks for them outside training
    }
  }
  const Vit model = Vit::initialize(small_config(), 1);
  EXPECT_EQ(model.forward({.images = images(32, 32), .training = true}).layer_losses.size(), 3u);
  EXPECT_NE(error_of([&] {
              model.forward({.images = at::zeros({1, 1, 32, 32})});
            }).find("[B, 3, height, width]"),
            std::string::npos);
}

// Larger pictures: distances keep the meaning that they had when the weights were trained.
TEST(Vit, AnotherImageSizeKeepsDistances) {
  Vit model = Vit::initialize(small_config(), 2);
  const c10::NoGradGuard no_grad;
  const Tensor before = model.place(0, {8, 8}).positions.table;
  const Tensor logits = model.forward({.images = images(48, 48)}).logits;  // of a model for 32 pixels
  model.set_image_size(48);
  EXPECT_EQ(model.config().image_size, 48);
  EXPECT_EQ(model.config().pretrain_size, 32);
  EXPECT_TRUE(at::equal(model.place(0, {8, 8}).positions.table, before));
  EXPECT_TRUE(at::equal(model.forward({.images = images(48, 48)}).logits, logits));
  // One step is 8 / (8 - 1) on a map of 8 as on one of 12.
  const Tensor small = model.place(2, {2, 2}).positions.table, large = model.place(2, {4, 4}).positions.table;
  EXPECT_TRUE(
      at::equal(std::get<0>(at::_unique2(small.abs())), std::get<0>(at::_unique2(large.abs())).narrow(0, 0, 2)));
  EXPECT_NE(error_of([&] { model.set_image_size(0); }).find("image_size"), std::string::npos);
}

TEST(Vit, DropPathActsInTrainingOnly) {
  VitConfig config = small_config();
  config.drop_path = 0.5;
  const Vit model = Vit::initialize(config, 3);
  const c10::NoGradGuard no_grad;
  const auto logits = [&](bool training) {
    return model.forward({.images = images(32, 32), .training = training}).logits;
  };
  EXPECT_TRUE(at::equal(logits(false), logits(false)));
  seed_default_generator(1);
  const Tensor first = logits(true), second = logits(true);
  EXPECT_FALSE(at::equal(first, second));
  seed_default_generator(1);
  EXPECT_TRUE(at::equal(first, logits(true)));
}

TEST(Vit, WithoutTheSecondStageBothKindsWeighOne) {
  VitConfig config = small_config();
  config.moh->two_stage = false;
  const Vit model = Vit::initialize(config, 4);
  for (const auto& [name, tensor] : model.parameters()) EXPECT_EQ(name.find("wg_0"), std::string::npos);
  const auto output = model.forward({.images = images(32, 32)});
  const Tensor gates = output.layers[1].routing.gates;  // one shared head, one of two routed
  EXPECT_TRUE(at::allclose(gates.select(-1, 0), at::ones({})));
  EXPECT_TRUE(at::allclose(gates.narrow(-1, 1, 2).sum(-1), at::ones({})));
}

TEST(Vit, SavesAndLoads) {
  const TempFolder folder;
  VitConfig config = small_config();
  config.classes = {"a", "b", "c", "d", "e"};
  const Vit model = Vit::initialize(config, 5);
  model.save(folder.file("m"));
  const Vit again = Vit::load(folder.file("m"));
  EXPECT_EQ(vit_config_json(again.config()), vit_config_json(config));
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    EXPECT_EQ(model.parameters()[i].first, again.parameters()[i].first);
    EXPECT_TRUE(at::equal(model.parameters()[i].second, again.parameters()[i].second));
  }
}

TEST(Vit, NamesWhatDoesNotFit) {
  const VitConfig config = small_config();
  const auto tensors = Vit::initialize(config, 6).parameters();
  const auto error = [&](io::NamedTensors changed) { return error_of([&] { Vit(config, std::move(changed)); }); };
  auto missing = tensors;
  missing.erase(missing.begin() + 7);
  EXPECT_NE(error(missing).find("`" + tensors[7].first + "` is missing"), std::string::npos);
  auto extra = tensors;
  extra.emplace_back("block9.0.norm1.weight", at::zeros({3}));
  EXPECT_NE(error(extra).find("`block9.0.norm1.weight`"), std::string::npos);
  auto buffers = tensors;  // old checkpoints carry tables that follow from the size
  buffers.emplace_back("relative_pos_index1", at::zeros({3}, at::kLong));
  buffers.emplace_back("relative_coords_table1", at::zeros({3, 2}));
  EXPECT_EQ(error(buffers), "");
  VitConfig more_classes = config;
  more_classes.num_classes = 6;
  EXPECT_NE(error_of([&] { Vit(more_classes, tensors); }).find("`head.weight` must be [6, 16]"), std::string::npos);
  Json json = vit_config_json(config);
  json["embed_dim"] = 3;
  EXPECT_NE(error_of([&] { parse_vit_config(json, "t"); }).find("did you mean `embed_dims`"), std::string::npos);
  json = vit_config_json(config);
  json["moh"]["top_k"] = {0, 3, 2};
  EXPECT_NE(error_of([&] { parse_vit_config(json, "t"); }).find("top_k must be in 0..2"), std::string::npos);
}

// A checkpoint as the authors' script writes it, by torch.save itself.
TEST(Vit, LoadsCheckpointsOfTheAuthors) {
  const TempFolder folder;
  VitConfig config = vit_preset("moh-vit-cifar");
  config.num_classes = 4;
  const Vit model = Vit::initialize(config, 7);
  model.save(folder.file("m"));
  io::write_file(folder.file("write.py"), std::string_view(R"(
import argparse, json, struct, sys, torch
folder = sys.argv[1]
data = open(folder + "/m/model.safetensors", "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + size])
header.pop("__metadata__", None)
state = {}
for name, entry in header.items():
    begin, end = entry["data_offsets"]
    state[name] = torch.frombuffer(bytearray(data[8 + size + begin:8 + size + end]), dtype=torch.float32).reshape(entry["shape"])
double = {name: value * 2 for name, value in state.items()}
args = argparse.Namespace(model="x", lr=1e-3)
torch.save({"model": state, "model_ema": double, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "epoch": 3, "args": args}, folder + "/both.pth")
torch.save({"model": state, "epoch": 3}, folder + "/plain.pth")
missing = dict(state)
missing.pop("norm3.bias")
torch.save({"model": missing}, folder + "/missing.pth")
)"));
  const std::string command = std::string(MOH_PYTHON) + " -W ignore " + folder.file("write.py") + " " + folder.path();
  ASSERT_EQ(std::system(command.c_str()), 0);
  const auto same = [&](const Vit& loaded, double factor) {
    for (std::size_t i = 0; i < model.parameters().size(); ++i) {
      EXPECT_TRUE(at::equal(model.parameters()[i].second * factor, loaded.parameters()[i].second));
    }
    EXPECT_EQ(loaded.config().num_classes, 4);
  };
  same(load_vit_checkpoint(folder.file("both.pth")), 2);  // the preset is found by the tensors
  same(load_vit_checkpoint(folder.file("both.pth"), "moh-vit-cifar", "model"), 1);
  same(load_vit_checkpoint(folder.file("plain.pth")), 1);
  same(load_vit_checkpoint(folder.file("m/model.safetensors")), 1);
  EXPECT_TRUE(is_vit_checkpoint_file(folder.file("plain.pth")));
  EXPECT_NE(error_of([&] { load_vit_checkpoint(folder.file("plain.pth"), "", "ema"); }).find("has no ema"),
            std::string::npos);
  EXPECT_NE(error_of([&] { load_vit_checkpoint(folder.file("missing.pth")); }).find("of no preset"), std::string::npos);
  EXPECT_NE(error_of([&] { load_vit_checkpoint(folder.file("missing.pth"), "moh-vit-cifar"); }).find("`norm3.bias`"),
            std::string::npos);
  EXPECT_NE(error_of([&] { load_vit_checkpoint(folder.file("plain.pth"), "vit-cifar"); }).find(".wg"),
            std::string::npos);
  const std::string whole = io::read_file(folder.file("plain.pth"));
  io::write_file(folder.file("cut.pth"), std::string_view(whole).substr(0, whole.size() / 2));
  EXPECT_NE(error_of([&] { load_vit_checkpoint(folder.file("cut.pth")); }).find("cut short"), std::string::npos);
}

}  // namespace
}  // namespace moh::models
