#include "moh/models/vit_config.h"

#include <algorithm>
#include <cmath>

namespace moh::models {
namespace {

constexpr const char* kModelType = "moh-vit";

std::int64_t half_up(std::int64_t size, std::int64_t kernel, std::int64_t stride) {
  return (size + 2 * (kernel / 2) - kernel) / stride + 1;
}

}  // namespace

std::int64_t VitConfig::mlp_hidden(std::size_t stage) const {
  const auto hidden = static_cast<std::int64_t>(static_cast<double>(embed_dims[stage]) * mlp_ratios[stage]);
  return 2 * hidden / 3;
}

std::int64_t VitConfig::map_size(std::size_t stage, std::int64_t image) const {
  std::int64_t size = half_up(image, 7, patch_size);
  for (std::size_t i = 0; i < stage; ++i) size = half_up(size, 3, 2);
  return size;
}

double VitConfig::activated_share() const {
  double active = 0, all = 0;
  for (std::size_t i = 0; i < embed_dims.size(); ++i) {
    active += static_cast<double>(depths[i] * (shared_heads(i) + top_k(i)));
    all += static_cast<double>(depths[i] * num_heads[i]);
  }
  return active / all;
}

void check_vit_config(const VitConfig& config, const std::string& where) {
  const auto check = [&](bool good, const auto&... what) { MOH_CHECK(good, "[", where, "] ", what...); };
  const std::size_t stages = config.embed_dims.size();
  check(stages > 0 && stages <= 16, "`embed_dims` must have 1 to 16 stages, got ", stages);
  check(config.num_heads.size() == stages && config.depths.size() == stages && config.sr_ratios.size() == stages &&
            config.mlp_ratios.size() == stages,
        "`num_heads`, `depths`, `sr_ratios` and `mlp_ratios` must have ", stages, " entries like `embed_dims`");
  check(config.image_size > 0 && config.image_size <= 1 << 15, "`image_size` must be in 1..32768, got ",
        config.image_size);
  check(config.pretrain_size >= 0 && config.pretrain_size <= 1 << 15, "`pretrain_size` must be in 0..32768, got ",
        config.pretrain_size);
  check(config.patch_size > 0, "`patch_size` must be positive, got ", config.patch_size);
  check(config.num_classes > 0, "`num_classes` must be positive, got ", config.num_classes);
  check(config.window_size > 0 && config.window_size % 2 == 1 && config.window_size <= 31,
        "`window_size` must be odd and at most 31, got ", config.window_size);
  check(config.drop_path >= 0 && config.drop_path < 1, "`drop_path` must be in [0, 1), got ", config.drop_path);
  check(std::all_of(config.std.begin(), config.std.end(), [](double value) { return value > 0; }),
        "`std` must be positive");
  check(config.crop > 0 && config.crop <= 1, "`crop` must be in (0, 1], got ", config.crop);
  check(config.classes.empty() || static_cast<std::int64_t>(config.classes.size()) == config.num_classes,
        "`classes` has ", config.classes.size(), " names, `num_classes` is ", config.num_classes);
  for (std::size_t i = 0; i < stages; ++i) {
    const std::int64_t heads = config.num_heads[i];
    check(config.embed_dims[i] > 0 && heads > 0 && config.embed_dims[i] % heads == 0, "stage ", i + 1, ": width ",
          config.embed_dims[i], " must be a multiple of ", heads, " heads");
    check(config.depths[i] > 0, "stage ", i + 1, ": depth must be positive, got ", config.depths[i]);
    check(config.sr_ratios[i] > 0, "stage ", i + 1, ": sr_ratio must be positive, got ", config.sr_ratios[i]);
    check(config.mlp_ratios[i] <= 1000 && config.mlp_hidden(i) > 0, "stage ", i + 1, ": mlp_ratio ",
          config.mlp_ratios[i], " makes no sense");
  }
  if (!config.moh) return;
  const VitMohConfig& moh = *config.moh;
  check(moh.shared_heads.size() == stages && moh.top_k.size() == stages,
        "`moh.shared_heads` and `moh.top_k` must have ", stages, " entries, one per stage");
  check(moh.beta >= 0 && std::isfinite(moh.beta), "`moh.beta` must be at least 0, got ", moh.beta);
  for (std::size_t i = 0; i < stages; ++i) {
    const std::int64_t heads = config.num_heads[i], shared = moh.shared_heads[i], top_k = moh.top_k[i];
    check(shared >= 0 && shared <= heads, "stage ", i + 1, ": shared_heads must be in 0..", heads, ", got ", shared);
    check(top_k >= 0 && top_k <= heads - shared, "stage ", i + 1, ": top_k must be in 0..", heads - shared, ", got ",
          top_k);
    check(shared + top_k > 0, "stage ", i + 1, ": at least one head must be active");
  }
}

bool is_vit_config(const Json& json) {
  const auto type = json.is_object() ? json.find("model_type") : json.end();
  return json.is_object() && type != json.end() && *type == kModelType;
}

VitConfig parse_vit_config(const Json& json, const std::string& where) {
  MOH_CHECK(is_vit_config(json), "[", where, "] expected `model_type` ", kModelType);
  Json plain = json;
  plain.erase("model_type");
  VitConfig config;
  if (const auto moh = json.find("moh"); moh != json.end()) {
    plain.erase("moh");
    if (!moh->is_null()) from_json(*moh, config.moh.emplace(), where + ": moh");
  }
  from_json(plain, config, where);
  check_vit_config(config, where);
  return config;
}

Json vit_config_json(const VitConfig& config) {
  Json json = Json::object();
  json["model_type"] = kModelType;
  json.update(to_json(config));
  if (config.moh) json["moh"] = to_json(*config.moh);
  return json;
}

}  // namespace moh::models
