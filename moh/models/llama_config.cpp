#include "moh/models/llama_config.h"

#include <cmath>

#include "moh/base/error.h"

namespace moh::models {
namespace {

template <class T>
void read(const Json& json, const char* key, T& value, const std::string& where) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return;
  bool fits = true;
  if constexpr (std::is_same_v<T, bool>) {
    fits = found->is_boolean();
  } else if constexpr (std::is_integral_v<T>) {
    fits = found->is_number_integer();
  } else if constexpr (std::is_floating_point_v<T>) {
    fits = found->is_number();
  }
  MOH_CHECK(fits, "[", where, "] `", key, "` cannot be ", found->dump().substr(0, 80));
  found->get_to(value);
}

// One number for all layers, or one per layer.
std::vector<std::int64_t> per_layer(const Json& json, const char* key, std::int64_t num_layers,
                                    const std::string& where) {
  const auto found = json.find(key);
  MOH_CHECK(found != json.end(), "[", where, "] `moh.", key, "` is missing");
  const auto is_integer = [](const Json& value) { return value.is_number_integer(); };
  if (is_integer(*found)) return std::vector<std::int64_t>(num_layers, found->get<std::int64_t>());
  MOH_CHECK(found->is_array() && std::all_of(found->begin(), found->end(), is_integer), "[", where, "] `moh.", key,
            "` must be a number or one number per layer, got ", found->dump().substr(0, 80));
  MOH_CHECK(static_cast<std::int64_t>(found->size()) == num_layers, "[", where, "] `moh.", key, "` has ", found->size(),
            " entries, the model has ", num_layers, " layers");
  return found->get<std::vector<std::int64_t>>();
}

Json per_layer_json(const std::vector<std::int64_t>& values) {
  const bool same = std::all_of(values.begin(), values.end(), [&](std::int64_t value) { return value == values[0]; });
  return !values.empty() && same ? Json(values[0]) : Json(values);
}

MohConfig parse_moh(const Json& json, std::int64_t num_layers, const std::string& where) {
  MOH_CHECK(json.is_object(), "[", where, "] `moh` must be an object, got ", json.type_name());
  static const std::vector<std::string> known = {"router", "select", "shared_heads", "top_k",           "head_order",
                                                 "beta",   "gates",  "balance",      "straight_through"};
  for (const auto& item : json.items()) {
    if (std::find(known.begin(), known.end(), item.key()) != known.end()) continue;
    const std::string near = nearest_name(item.key(), known);
    fail("[", where, "] unknown field `moh.", item.key(), "`", near.empty() ? "" : ", did you mean `" + near + "`?");
  }
  MohConfig moh;
  const auto text = [&](const char* key, std::string& value) {
    const auto found = json.find(key);
    if (found == json.end()) return;
    MOH_CHECK(found->is_string(), "[", where, "] `moh.", key, "` must be a string, got ", found->dump().substr(0, 80));
    value = found->get<std::string>();
  };
  text("router", moh.router);
  text("select", moh.select);
  text("gates", moh.gates);
  text("balance", moh.balance);
  text("straight_through", moh.straight_through);
  read(json, "beta", moh.beta, where);
  moh.shared_heads = per_layer(json, "shared_heads", num_layers, where);
  moh.top_k = per_layer(json, "top_k", num_layers, where);
  if (const auto order = json.find("head_order"); order != json.end() && !order->is_null()) {
    const auto is_integer = [](const Json& value) { return value.is_number_integer(); };
    MOH_CHECK(order->is_array() && std::all_of(order->begin(), order->end(),
                                               [&](const Json& layer) {
                                                 return layer.is_array() &&
                                                        std::all_of(layer.begin(), layer.end(), is_integer);
                                               }),
              "[", where, "] `moh.head_order` must be one list of head numbers per layer, got ",
              order->dump().substr(0, 80));
    moh.head_order = order->get<std::vector<std::vector<std::int64_t>>>();
  }
  return moh;
}

layers::RopeScaling parse_rope_scaling(const Json& json, const std::string& where) {
  layers::RopeScaling scaling;
  MOH_CHECK(json.is_object(), "[", where, "] `rope_scaling` must be an object or null, got ", json.type_name());
  for (const char* key : {"type", "rope_type"}) {
    if (json.contains(key) && json[key].is_string()) scaling.type = json[key].get<std::string>();
  }
  MOH_CHECK(scaling.type == "default" || scaling.type == "linear" || scaling.type == "llama3", "[", where,
            "] `rope_scaling` of type `", scaling.type, "` is not known; known: default, linear, llama3");
  read(json, "factor", scaling.factor, where);
  read(json, "low_freq_factor", scaling.low_freq_factor, where);
  read(json, "high_freq_factor", scaling.high_freq_factor, where);
  read(json, "original_max_position_embeddings", scaling.original_max_position_embeddings, where);
  MOH_CHECK(scaling.factor > 0 && scaling.original_max_position_embeddings > 0 &&
                (scaling.type != "llama3" || scaling.high_freq_factor > scaling.low_freq_factor),
            "[", where, "] `rope_scaling` ", json.dump().substr(0, 200), " makes no sense");
  return scaling;
}

bool is_authors_moh_llama(const Json& json) {
  const auto map = json.find("auto_map");
  if (map == json.end() || !map->is_object() || json.value("model_type", "") != "llama") return false;
  const auto model = map->find("AutoModelForCausalLM");
  return model != map->end() && model->is_string() && model->get<std::string>() == "modeling_llama.LlamaForCausalLM";
}

// Every layer's order names every head once and keeps together what is chosen together.
void check_head_order(const LlamaConfig& config, const std::string& where) {
  const auto& order = config.moh->head_order;
  if (order.empty()) return;
  MOH_CHECK(static_cast<std::int64_t>(order.size()) == config.num_hidden_layers, "[", where, "] `moh.head_order` has ",
            order.size(), " entries, the model has ", config.num_hidden_layers, " layers");
  const std::int64_t heads = config.num_attention_heads, group = config.heads_per_choice();
  for (std::size_t layer = 0; layer < order.size(); ++layer) {
    std::vector<std::int64_t> sorted = order[layer];
    std::sort(sorted.begin(), sorted.end());
    bool complete = static_cast<std::int64_t>(sorted.size()) == heads;
    for (std::int64_t i = 0; complete && i < heads; ++i) complete = sorted[i] == i;
    MOH_CHECK(complete, "[", where, "] `moh.head_order` of layer ", layer, " must name each of the heads 0..",
              heads - 1, " once");
    for (std::int64_t i = 0; i < heads; ++i) {
      MOH_CHECK(order[layer][i] == order[layer][i - i % group] + i % group && order[layer][i - i % group] % group == 0,
                "[", where, "] `moh.head_order` of layer ", layer,
                " must keep the query heads of a KV head together (`moh.select` is kv-group)");
    }
  }
}

}  // namespace

double LlamaConfig::activated_share() const {
  double active = 0;
  for (std::int64_t layer = 0; layer < num_hidden_layers; ++layer) active += shared_heads(layer) + top_k(layer);
  return active / static_cast<double>(num_hidden_layers * num_attention_heads);
}

bool LlamaConfig::is_shared(std::int64_t layer, std::int64_t head) const {
  if (!moh || moh->head_order.empty()) return head < shared_heads(layer);
  const auto& order = moh->head_order[layer];
  return std::find(order.begin(), order.end(), head) - order.begin() < shared_heads(layer);
}

LlamaConfig parse_llama_config(const Json& json, const std::string& where) {
  MOH_CHECK(json.is_object(), "[", where, "] expected an object, got ", json.type_name());
  const auto type = json.find("model_type");
  MOH_CHECK(type != json.end() && type->is_string(), "[", where, "] `model_type` is missing");
  MOH_CHECK(*type == "llama", "[", where, "] model_type ", type->dump(), " is not supported; supported: llama");
  LlamaConfig config;
  config.source = json;
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    MOH_CHECK(json.contains(key), "[", where, "] `", key, "` is missing");
  }
  read(json, "vocab_size", config.vocab_size, where);
  read(json, "hidden_size", config.hidden_size, where);
  read(json, "intermediate_size", config.intermediate_size, where);
  read(json, "num_hidden_layers", config.num_hidden_layers, where);
  read(json, "num_attention_heads", config.num_attention_heads, where);
  config.num_key_value_heads = config.num_attention_heads;
  read(json, "num_key_value_heads", config.num_key_value_heads, where);
  MOH_CHECK(config.num_attention_heads > 0, "[", where, "] `num_attention_heads` must be positive, got ",
            config.num_attention_heads);
  config.head_dim = config.hidden_size / config.num_attention_heads;
  read(json, "head_dim", config.head_dim, where);
  read(json, "max_position_embeddings", config.max_position_embeddings, where);
  read(json, "rms_norm_eps", config.rms_norm_eps, where);
  read(json, "rope_theta", config.rope_theta, where);
  read(json, "initializer_range", config.initializer_range, where);
  read(json, "attention_bias", config.attention_bias, where);
  read(json, "mlp_bias", config.mlp_bias, where);
  read(json, "tie_word_embeddings", config.tie_word_embeddings, where);
  read(json, "bos_token_id", config.bos_token_id, where);
  if (const auto eos = json.find("eos_token_id"); eos != json.end() && !eos->is_null()) {
    if (eos->is_array()) {
      for (const auto& id : *eos) {
        MOH_CHECK(id.is_number_integer(), "[", where, "] `eos_token_id` cannot be ", eos->dump().substr(0, 80));
        config.eos_token_id.push_back(id.get<std::int64_t>());
      }
    } else {
      MOH_CHECK(eos->is_number_integer(), "[", where, "] `eos_token_id` cannot be ", eos->dump().substr(0, 80));
      config.eos_token_id.push_back(eos->get<std::int64_t>());
    }
  }
  std::string activation = "silu";
  if (const auto act = json.find("hidden_act"); act != json.end() && act->is_string()) act->get_to(activation);
  MOH_CHECK(activation == "silu", "[", where, "] hidden_act `", activation, "` is not supported; supported: silu");
  for (const char* key : {"rope_scaling", "rope_parameters"}) {  // the second since transformers 5
    const auto scaling = json.find(key);
    if (scaling == json.end() || scaling->is_null()) continue;
    config.rope_scaling = parse_rope_scaling(*scaling, where);
    read(*scaling, "rope_theta", config.rope_theta, where);
  }
  if (const auto moh = json.find("moh"); moh != json.end() && !moh->is_null()) {
    MOH_CHECK(config.num_hidden_layers > 0 && config.num_hidden_layers <= 100000, "[", where,
              "] `num_hidden_layers` must be in 1..100000, got ", config.num_hidden_layers);
    config.moh = parse_moh(*moh, config.num_hidden_layers, where);
  } else if (is_authors_moh_llama(json)) {
    MOH_CHECK(config.num_hidden_layers > 0 && config.num_hidden_layers <= 100000, "[", where,
              "] `num_hidden_layers` must be in 1..100000, got ", config.num_hidden_layers);
    MohConfig moh;
    moh.shared_heads.assign(config.num_hidden_layers, config.num_attention_heads / 2);
    moh.top_k.assign(config.num_hidden_layers, config.num_attention_heads / 4);
    config.moh = moh;
  }
  check_llama_config(config, where);
  return config;
}

void check_llama_config(const LlamaConfig& config, const std::string& where) {
  const auto positive = [&](const char* key, std::int64_t value, std::int64_t limit) {
    MOH_CHECK(value > 0 && value <= limit, "[", where, "] `", key, "` must be in 1..", limit, ", got ", value);
  };
  positive("vocab_size", config.vocab_size, 1 << 24);
  positive("hidden_size", config.hidden_size, 1 << 20);
  positive("intermediate_size", config.intermediate_size, 1 << 22);
  positive("num_hidden_layers", config.num_hidden_layers, 100000);
  positive("num_attention_heads", config.num_attention_heads, 1 << 16);
  positive("num_key_value_heads", config.num_key_value_heads, config.num_attention_heads);
  positive("head_dim", config.head_dim, 1 << 16);
  positive("max_position_embeddings", config.max_position_embeddings, std::int64_t{1} << 32);
  MOH_CHECK(config.head_dim % 2 == 0, "[", where, "] `head_dim` must be even for rotary embeddings, got ",
            config.head_dim);
  MOH_CHECK(config.num_attention_heads % config.num_key_value_heads == 0, "[", where, "] `num_attention_heads` ",
            config.num_attention_heads, " must be a multiple of `num_key_value_heads` ", config.num_key_value_heads);
  MOH_CHECK(config.rms_norm_eps >= 0 && config.rope_theta > 0, "[", where,
            "] `rms_norm_eps` and `rope_theta` must be positive, got ", config.rms_norm_eps, " and ",
            config.rope_theta);
  if (!config.moh) return;
  const MohConfig& moh = *config.moh;
  const auto one_of = [&](const char* key, const std::string& value, const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), value) != known.end()) return;
    std::string list;
    for (const auto& name : known) list += (list.empty() ? "" : ", ") + name;
    fail("[", where, "] `moh.", key, "` must be one of ", list, "; got `", value, "`");
  };
  one_of("router", moh.router, {"norm", "two-stage"});
  one_of("select", moh.select, {"head", "kv-group"});
  one_of("gates", moh.gates, {"paper", "authors"});
  one_of("balance", moh.balance, {"paper", "authors"});
  one_of("straight_through", moh.straight_through, {"selected", "all", "none"});
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::int64_t shared = moh.shared_heads[layer], top_k = moh.top_k[layer];
    MOH_CHECK(shared >= 0 && shared <= config.num_attention_heads, "[", where, "] `moh.shared_heads` of layer ", layer,
              " must be in 0..", config.num_attention_heads, ", got ", shared);
    MOH_CHECK(top_k >= 0 && top_k <= config.num_attention_heads - shared, "[", where, "] `moh.top_k` of layer ", layer,
              " must be in 0..", config.num_attention_heads - shared, " (heads less shared heads), got ", top_k);
    MOH_CHECK(shared + top_k > 0, "[", where, "] layer ", layer, " has neither shared heads nor top_k");
    const std::int64_t group = config.heads_per_choice();
    MOH_CHECK(shared % group == 0 && top_k % group == 0, "[", where,
              "] `moh.select` kv-group takes heads in groups of ", group, ", but layer ", layer, " has ", shared,
              " shared heads and top_k ", top_k);
  }
  check_head_order(config, where);
}

Json llama_config_json(const LlamaConfig& config) {
  Json json = config.source;
  const bool fresh = json.empty();
  if (fresh) {
    json["architectures"] = {"LlamaForCausalLM"};
    json["model_type"] = "llama";
    json["hidden_act"] = "silu";
    json["attention_dropout"] = 0.0;
    json["use_cache"] = true;
  }
  // Keys that the file had are updated; absent ones are added, except where their absence means the same.
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_hidden_layers"] = config.num_hidden_layers;
  json["num_attention_heads"] = config.num_attention_heads;
  json["num_key_value_heads"] = config.num_key_value_heads;
  json["head_dim"] = config.head_dim;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["initializer_range"] = config.initializer_range;
  json["attention_bias"] = config.attention_bias;
  json["mlp_bias"] = config.mlp_bias;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  if (!json.contains("rope_parameters")) json["rope_theta"] = config.rope_theta;
  if (!json.contains("rope_parameters") && !json.contains("rope_scaling")) json["rope_scaling"] = nullptr;
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (!config.eos_token_id.empty()) {
    json["eos_token_id"] = config.eos_token_id.size() == 1 ? Json(config.eos_token_id[0]) : Json(config.eos_token_id);
  }
  if (fresh) json["torch_dtype"] = "float32";
  if (config.moh) {
    const MohConfig& moh = *config.moh;
    Json object = Json::object();
    object["router"] = moh.router;
    object["select"] = moh.select;
    object["shared_heads"] = per_layer_json(moh.shared_heads);
    object["top_k"] = per_layer_json(moh.top_k);
    if (!moh.head_order.empty()) object["head_order"] = moh.head_order;
    object["beta"] = moh.beta;
    object["gates"] = moh.gates;
    object["balance"] = moh.balance;
    object["straight_through"] = moh.straight_through;
    json["moh"] = object;
  } else {
    json.erase("moh");
  }
  return json;
}

MohConfig make_moh_config(std::int64_t num_layers, std::int64_t num_heads, double activated,
                          std::optional<double> shared_share, std::optional<std::int64_t> top_k,
                          const std::string& router, std::int64_t heads_per_choice) {
  MOH_CHECK(activated > 0 && activated <= 1, "[moh] activated must be in (0, 1], got ", activated);
  MOH_CHECK(!shared_share || (*shared_share >= 0 && *shared_share <= 1), "[moh] shared must be in 0..1, got ",
            shared_share.value_or(0));
  MOH_CHECK(heads_per_choice > 0 && num_heads % heads_per_choice == 0, "[moh] ", num_heads,
            " heads cannot be chosen in groups of ", heads_per_choice);
  // In choices: single heads, or groups of them.
  const std::int64_t all = num_heads / heads_per_choice;
  const auto share_of_all = [&](double share) { return std::llround(share * static_cast<double>(all)); };
  const auto active = std::max<std::int64_t>(1, share_of_all(activated));
  std::int64_t routed = 0;
  if (shared_share) {
    routed = active - std::min<std::int64_t>(active, share_of_all(*shared_share));
  } else if (active < all) {
    routed = std::max<std::int64_t>(1, std::min(all / 4, active / 2));
  }
  if (top_k) {
    MOH_CHECK(*top_k >= 0 && *top_k <= active * heads_per_choice && *top_k % heads_per_choice == 0,
              "[moh] top_k must be in 0..", active * heads_per_choice, " (", active * heads_per_choice, " of ",
              num_heads, " heads are active) in steps of ", heads_per_choice, ", got ", *top_k);
    routed = *top_k / heads_per_choice;
  }
  MohConfig moh;
  moh.router = router;
  if (heads_per_choice > 1) moh.select = "kv-group";
  moh.shared_heads.assign(num_layers, (active - routed) * heads_per_choice);
  moh.top_k.assign(num_layers, routed * heads_per_choice);
  return moh;
}

}  // namespace moh::models
