#include "moh/models/llama_config.h"

#include <cmath>

#include "moh/base/error.h"
#include "moh/layers/routers/router_kind.h"
#include "moh/models/llama_config_json.h"
#include "moh/models/llama_family.h"

namespace moh::models {
namespace {

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

MohConfig parse_moh(const Json& json, std::int64_t num_layers, std::int64_t num_heads, const std::string& where) {
  MOH_CHECK(json.is_object(), "[", where, "] `moh` must be an object, got ", json.type_name());
  MohConfig moh;
  const auto text = [&](const char* key, const auto& use) {
    const auto found = json.find(key);
    if (found == json.end()) return;
    MOH_CHECK(found->is_string(), "[", where, "] `moh.", key, "` must be a string, got ", found->dump().substr(0, 80));
    use(found->get<std::string>());
  };
  text("router", [&](const std::string& name) {
    std::string names;
    for (const auto& each : layers::router_names()) names += (names.empty() ? "" : ", ") + each;
    MOH_CHECK(layers::is_router(name), "[", where, "] `moh.router` must be one of ", names, "; got `", name, "`");
    moh.router = name;
  });
  std::vector<std::string> known = {"router", "select", "shared_heads", "top_k",           "head_order",
                                    "beta",   "gates",  "balance",      "straight_through"};
  const std::vector<std::string>& own = moh.router->keys;
  known.insert(known.end(), own.begin(), own.end());
  for (const auto& item : json.items()) {
    if (std::find(own.begin(), own.end(), item.key()) != own.end()) moh.own[item.key()] = item.value();
    if (std::find(known.begin(), known.end(), item.key()) != known.end()) continue;
    const std::string near = nearest_name(item.key(), known);
    fail("[", where, "] unknown field `moh.", item.key(), "`", near.empty() ? "" : ", did you mean `" + near + "`?");
  }
  const auto choice = [&](const char* key, auto& value) {
    text(key,
         [&](const std::string& name) { layers::parse_name(name, value, where, (std::string("moh.") + key).c_str()); });
  };
  choice("select", moh.select);
  choice("gates", moh.gates);
  choice("balance", moh.balance);
  choice("straight_through", moh.straight_through);
  read(json, "beta", moh.beta, where);
  moh.shared_heads = per_layer(json, "shared_heads", num_layers, where);
  if (moh.router->check != nullptr) moh.router->check(moh.own, num_layers, where);
  if (moh.by_threshold()) {
    MOH_CHECK(!json.contains("top_k"), "[", where,
              "] `moh.top_k` has no place beside `moh.choose` threshold, which fixes no number of heads");
    for (const std::int64_t shared : moh.shared_heads) moh.top_k.push_back(num_heads - shared);
  } else {
    moh.top_k = per_layer(json, "top_k", num_layers, where);
  }
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

// The custom code that `auto_map` names for language modelling, without the repository that transformers may put before
// it; "" if none.
std::string custom_code(const Json& json) {
  const auto map = json.find("auto_map");
  if (map == json.end() || !map->is_object()) return "";
  const auto model = map->find("AutoModelForCausalLM");
  if (model == map->end() || !model->is_string()) return "";
  const auto name = model->get<std::string>();
  const std::size_t repository = name.rfind("--");
  return repository == std::string::npos ? name : name.substr(repository + 2);
}

bool is_authors_moh_llama(const Json& json, const std::string& model_type, ReadAs as, const std::string& where) {
  if (as == ReadAs::kMohLlama) {
    MOH_CHECK(model_type == "llama", "[", where, "] only model_type llama can be read as the authors' MoH-LLaMA, got ",
              model_type);
    return true;
  }
  const std::string code = custom_code(json);
  if (as == ReadAs::kDense || code.empty()) return false;
  MOH_CHECK(model_type == "llama" && code == "modeling_llama.LlamaForCausalLM", "[", where, "] `auto_map` names `",
            code,
            "`, code that moh does not run; say what the model is: --read-as dense, or --read-as moh-llama for the "
            "authors' MoH-LLaMA");
  return true;
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

std::string LlamaConfig::heads_text(std::int64_t layer) const {
  const std::string routed = std::to_string(num_attention_heads - shared_heads(layer));
  return std::to_string(shared_heads(layer)) + " shared + " +
         (moh && moh->by_threshold() ? routed + " routed by threshold"
                                     : std::to_string(top_k(layer)) + " of " + routed + " routed");
}

double LlamaConfig::activated_share() const {
  if (moh && moh->by_threshold()) return moh->own.at("activated").get<double>();
  double active = 0;
  for (std::int64_t layer = 0; layer < num_hidden_layers; ++layer) active += shared_heads(layer) + top_k(layer);
  return active / static_cast<double>(num_hidden_layers * num_attention_heads);
}

bool LlamaConfig::is_shared(std::int64_t layer, std::int64_t head) const {
  if (!moh || moh->head_order.empty()) return head < shared_heads(layer);
  const auto& order = moh->head_order[layer];
  return std::find(order.begin(), order.end(), head) - order.begin() < shared_heads(layer);
}

ReadAs read_as(const std::string& name) {
  if (name == "dense") return ReadAs::kDense;
  if (name == "moh-llama") return ReadAs::kMohLlama;
  MOH_CHECK(name == "auto", "[config] --read-as must be auto, dense or moh-llama, got `", name, "`");
  return ReadAs::kAuto;
}

LlamaConfig parse_llama_config(const Json& json, const std::string& where, ReadAs as) {
  MOH_CHECK(json.is_object(), "[", where, "] expected an object, got ", json.type_name());
  Json source = json;
  const bool has_moh = json.contains("moh") && !json["moh"].is_null();
  if (const auto type = json.find("model_type"); type != json.end() && type->is_string() && has_moh) {
    const auto name = type->get<std::string>();
    if (name.starts_with(kExportPrefix)) {  // a folder of `convert --export hf`: the family's own keys again
      source["model_type"] = name.substr(std::string_view(kExportPrefix).size());
      source.erase("auto_map");
      if (const LlamaFamily* family = find_llama_family(source["model_type"].get<std::string>())) {
        source["architectures"] = {family->architecture};
      }
    }
  }
  LlamaConfig config = parse_model_part(source, where);
  if (has_moh) {
    MOH_CHECK(as != ReadAs::kDense, "[", where, "] has an object `moh`, so it cannot be read as dense");
    config.moh = parse_moh(source["moh"], config.num_hidden_layers, config.num_attention_heads, where);
  } else if (is_authors_moh_llama(json, config.model_type, as, where)) {
    MohConfig moh;
    moh.shared_heads.assign(config.num_hidden_layers, config.num_attention_heads / 2);
    moh.top_k.assign(config.num_hidden_layers, config.num_attention_heads / 4);
    config.moh = moh;
  }
  if (!has_moh) config.source.erase("auto_map");  // code that what moh writes has no use for
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
  MOH_CHECK(config.rotary_size() > 1 && config.rotary_size() % 2 == 0, "[", where,
            "] `partial_rotary_factor` must leave an even number of dimensions of each head, got ",
            config.rotary_size());
  MOH_CHECK(config.num_attention_heads % config.num_key_value_heads == 0, "[", where, "] `num_attention_heads` ",
            config.num_attention_heads, " must be a multiple of `num_key_value_heads` ", config.num_key_value_heads);
  MOH_CHECK(config.rms_norm_eps >= 0 && config.rope_theta > 0, "[", where,
            "] `rms_norm_eps` and `rope_theta` must be positive, got ", config.rms_norm_eps, " and ",
            config.rope_theta);
  MOH_CHECK(config.windows.empty() || static_cast<std::int64_t>(config.windows.size()) == config.num_hidden_layers, "[",
            where, "] ", config.windows.size(), " windows for ", config.num_hidden_layers, " layers");
  MOH_CHECK(
      config.rope_layers.empty() || static_cast<std::int64_t>(config.rope_layers.size()) == config.num_hidden_layers,
      "[", where, "] ", config.rope_layers.size(), " rotary flags for ", config.num_hidden_layers, " layers");
  if (!config.moh) return;
  const MohConfig& moh = *config.moh;
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
  Json json = model_part_json(config);
  if (config.moh) {
    const MohConfig& moh = *config.moh;
    Json object = Json::object();
    object["router"] = moh.router.name();
    object["select"] = layers::name_of(moh.select);
    object["shared_heads"] = per_layer_json(moh.shared_heads);
    if (!moh.by_threshold()) object["top_k"] = per_layer_json(moh.top_k);
    if (!moh.head_order.empty()) object["head_order"] = moh.head_order;
    object["beta"] = moh.beta;
    object["gates"] = layers::name_of(moh.gates);
    object["balance"] = layers::name_of(moh.balance);
    object["straight_through"] = layers::name_of(moh.straight_through);
    for (const auto& item : moh.own.items()) object[item.key()] = item.value();
    json["moh"] = object;
  } else {
    json.erase("moh");
  }
  return json;
}

MohConfig make_moh_config(std::int64_t num_layers, std::int64_t num_heads, double activated,
                          std::optional<double> shared_share, std::optional<std::int64_t> top_k,
                          layers::RouterKind router, std::int64_t heads_per_choice) {
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
  if (heads_per_choice > 1) moh.select = layers::SelectBy::kKvGroup;
  moh.shared_heads.assign(num_layers, (active - routed) * heads_per_choice);
  moh.top_k.assign(num_layers, routed * heads_per_choice);
  return moh;
}

}  // namespace moh::models
