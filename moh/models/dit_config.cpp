#include "moh/models/dit_config.h"

#include <cmath>
#include <limits>

#include "moh/base/error.h"

namespace moh::models {
namespace {

constexpr const char* kModelType = "moh_dit";
constexpr std::int64_t kMostLayers = 4096, kLargest = std::int64_t{1} << 20;

// One number stands for all layers.
void expand_per_layer(Json& json, const char* key, std::int64_t depth) {
  const auto found = json.find(key);
  if (found != json.end() && found->is_number_integer()) {
    *found = std::vector<std::int64_t>(static_cast<std::size_t>(depth), found->get<std::int64_t>());
  }
}

void shorten_per_layer(Json& json, const char* key) {
  const auto values = json[key].get<std::vector<std::int64_t>>();
  const bool same = std::all_of(values.begin(), values.end(), [&](std::int64_t value) { return value == values[0]; });
  if (!values.empty() && same) json[key] = values[0];
}

}  // namespace

double DitConfig::activated_share() const {
  std::int64_t active = 0, all = 0;
  for (std::int64_t layer = 0; layer < depth; ++layer) {
    active += shared_heads(layer) + top_k(layer);
    all += num_heads[layer];
  }
  return static_cast<double>(active) / static_cast<double>(all);
}

bool is_dit_config(const Json& json) { return json.is_object() && json.value("model_type", Json()) == kModelType; }

DitConfig parse_dit_config(const Json& json, const std::string& where) {
  MOH_CHECK(json.is_object(), "[", where, "] expected an object, got ", json.type_name());
  DitConfig config;
  Json own = json;
  if (own.contains("model_type")) {
    MOH_CHECK(is_dit_config(own), "[", where, "] `model_type` must be ", kModelType, ", got ",
              own["model_type"].dump().substr(0, 80));
  }
  const Json moh = own.value("moh", Json());
  for (const char* key : {"model_type", "architectures", "moh"}) own.erase(key);
  from_json(Json{{"depth", own.value("depth", Json(config.depth))}}, config, where);
  MOH_CHECK(config.depth > 0 && config.depth <= kMostLayers, "[", where, "] `depth` must be in 1..", kMostLayers,
            ", got ", config.depth);
  expand_per_layer(own, "num_heads", config.depth);
  from_json(own, config, where);
  if (moh.is_object()) {
    Json read = moh;
    expand_per_layer(read, "shared_heads", config.depth);
    expand_per_layer(read, "top_k", config.depth);
    from_json(read, config.moh.emplace(), where + " moh");
  } else {
    MOH_CHECK(moh.is_null(), "[", where, "] `moh` must be an object, got ", moh.type_name());
  }
  check_dit_config(config, where);
  return config;
}

Json dit_config_json(const DitConfig& config) {
  Json json = Json::object();
  json["model_type"] = kModelType;
  json.update(to_json(config));
  shorten_per_layer(json, "num_heads");
  if (config.classes.empty()) json.erase("classes");
  if (config.moh) {
    json["moh"] = to_json(*config.moh);
    shorten_per_layer(json["moh"], "shared_heads");
    shorten_per_layer(json["moh"], "top_k");
  }
  return json;
}

void check_dit_config(const DitConfig& config, const std::string& where) {
  const auto positive = [&](const char* key, std::int64_t value) {
    MOH_CHECK(value > 0 && value <= kLargest, "[", where, "] `", key, "` must be in 1..", kLargest, ", got ", value);
  };
  positive("input_size", config.input_size);
  positive("in_channels", config.in_channels);
  positive("patch_size", config.patch_size);
  positive("hidden_size", config.hidden_size);
  positive("head_dim", config.head_dim);
  positive("num_classes", config.num_classes);
  MOH_CHECK(config.depth > 0 && config.depth <= kMostLayers, "[", where, "] `depth` must be in 1..", kMostLayers,
            ", got ", config.depth);
  MOH_CHECK(config.input_size % config.patch_size == 0, "[", where, "] `input_size` ", config.input_size,
            " must be a multiple of `patch_size` ", config.patch_size);
  MOH_CHECK(config.hidden_size % 4 == 0, "[", where,
            "] `hidden_size` must be a multiple of 4 (sin-cos positions), got ", config.hidden_size);
  MOH_CHECK(config.mlp_ratio > 0 && config.mlp_ratio <= 1024, "[", where, "] `mlp_ratio` must be in 0..1024, got ",
            config.mlp_ratio);
  MOH_CHECK(config.class_dropout >= 0 && config.class_dropout <= 1, "[", where,
            "] `class_dropout` must be in 0..1, got ", config.class_dropout);
  MOH_CHECK(config.prediction_type == "epsilon" || config.predicts_velocity(), "[", where,
            "] `prediction_type` must be epsilon or v_prediction, got `", config.prediction_type, "`");
  MOH_CHECK(config.space == "latent" || config.space == "pixel", "[", where, "] `space` must be latent or pixel, got `",
            config.space, "`");
  MOH_CHECK(config.classes.empty() || static_cast<std::int64_t>(config.classes.size()) == config.num_classes, "[",
            where, "] `classes` has ", config.classes.size(), " names for ", config.num_classes, " classes");
  const auto per_layer = [&](const char* key, const std::vector<std::int64_t>& values) {
    MOH_CHECK(static_cast<std::int64_t>(values.size()) == config.depth, "[", where, "] `", key,
              "` must be a number or one per layer: ", config.depth, ", got ", values.size());
  };
  per_layer("num_heads", config.num_heads);
  if (config.moh) {
    per_layer("moh.shared_heads", config.moh->shared_heads);
    per_layer("moh.top_k", config.moh->top_k);
    MOH_CHECK(config.moh->gates == "authors" || config.moh->gates == "paper", "[", where,
              "] `moh.gates` must be authors or paper, got `", config.moh->gates, "`");
    MOH_CHECK(config.moh->beta >= 0 && std::isfinite(config.moh->beta), "[", where,
              "] `moh.beta` must be at least 0, got ", config.moh->beta);
  }
  for (std::int64_t layer = 0; layer < config.depth; ++layer) {
    const std::int64_t heads = config.num_heads[layer], shared = config.shared_heads(layer), k = config.top_k(layer);
    MOH_CHECK(heads > 0 && heads <= kLargest / config.head_dim, "[", where, "] `num_heads` of layer ", layer,
              " must be positive (and heads * head_dim at most ", kLargest, "), got ", heads);
    MOH_CHECK(shared >= 0 && shared <= heads && k >= 0 && k <= heads - shared && shared + k > 0, "[", where, "] layer ",
              layer, " has ", heads, " heads; `moh.shared_heads` ", shared, " and `moh.top_k` ", k, " do not fit");
  }
}

}  // namespace moh::models
