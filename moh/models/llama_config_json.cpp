#include "moh/models/llama_config_json.h"

#include <cmath>

#include "moh/base/error.h"
#include "moh/models/llama_family.h"

namespace moh::models {
namespace {

layers::RopeScaling parse_rope_scaling(const Json& json, const char* key, const std::string& where) {
  layers::RopeScaling scaling;
  MOH_CHECK(json.is_object(), "[", where, "] `", key, "` must be an object or null, got ", json.type_name());
  for (const auto& [name, value] : json.items()) {  // one object for each kind of layer
    MOH_CHECK(!value.is_object(), "[", where, "] `", key, "` holds an object `", name,
              "`: different rotary embeddings for different layers are not supported");
  }
  read(json, "type", scaling.type, where);
  read(json, "rope_type", scaling.type, where);
  MOH_CHECK(scaling.type == "default" || scaling.type == "linear" || scaling.type == "llama3", "[", where, "] `", key,
            "` of type `", scaling.type, "` is not known; known: default, linear, llama3");
  if (scaling.type == "default") return scaling;
  std::vector<const char*> needed = {"factor"};
  if (scaling.type == "llama3") {
    needed.insert(needed.end(), {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
  }
  for (const char* field : needed) {
    MOH_CHECK(json.contains(field), "[", where, "] `", key, "` of type ", scaling.type, " lacks `", field, "`");
  }
  read(json, "factor", scaling.factor, where);
  read(json, "low_freq_factor", scaling.low_freq_factor, where);
  read(json, "high_freq_factor", scaling.high_freq_factor, where);
  read(json, "original_max_position_embeddings", scaling.original_max_position_embeddings, where);
  MOH_CHECK(scaling.factor > 0 && scaling.original_max_position_embeddings > 0 &&
                (scaling.type != "llama3" || scaling.high_freq_factor > scaling.low_freq_factor),
            "[", where, "] `", key, "` ", json.dump().substr(0, 200), " makes no sense");
  return scaling;
}

// Gemma 3 since transformers 5: `rope_parameters` has one object for layers with a window and one for the others. As
// transformers 4 had it: rope_theta, rope_local_base_freq, and a rope_scaling of the others alone.
Json with_one_rope(const Json& json, const LlamaFamily& family, const std::string& where) {
  const auto found = json.find("rope_parameters");
  if (family.rope_local_theta == 0 || found == json.end() || !found->is_object() ||
      !found->contains("full_attention")) {
    return json;
  }
  Json flat = json;
  flat["rope_parameters"] = (*found)["full_attention"];
  const Json local = found->value("sliding_attention", Json::object());
  const Json type = local.is_object() ? local.value("rope_type", Json("default")) : Json();
  MOH_CHECK(type == "default", "[", where, "] `rope_parameters.sliding_attention` must be of type default, got ",
            local.dump().substr(0, 80));
  if (local.contains("rope_theta")) flat["rope_local_base_freq"] = local["rope_theta"];
  return flat;
}

// Null says 0, silence what the family assumes.
double parse_cap(const Json& json, const char* key, double silent, const std::string& where) {
  double cap = json.contains(key) ? 0 : silent;
  read(json, key, cap, where);
  MOH_CHECK(cap >= 0 && std::isfinite(cap), "[", where, "] `", key, "` must be positive or null, got ", cap);
  return cap;
}

void parse_scales(const Json& json, const LlamaFamily& family, LlamaConfig& config, const std::string& where) {
  const auto positive = [&](const char* key, double value) {
    MOH_CHECK(value > 0 && std::isfinite(value), "[", where, "] `", key, "` must be positive, got ", value);
    return value;
  };
  if (family.scaled_embedding) config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  if (family.query_scalar > 0) {
    double scalar = family.query_scalar;
    read(json, "query_pre_attn_scalar", scalar, where);
    config.attention_scale = 1 / std::sqrt(positive("query_pre_attn_scalar", scalar));
    config.attention_soft_cap = parse_cap(json, "attn_logit_softcapping", family.attention_soft_cap, where);
    config.logits_soft_cap = parse_cap(json, "final_logit_softcapping", family.logits_soft_cap, where);
  }
  if (family.multipliers) {
    config.attention_scale = 1;
    read(json, "embedding_multiplier", config.embedding_scale, where);
    read(json, "attention_multiplier", config.attention_scale, where);
    read(json, "residual_multiplier", config.residual_multiplier, where);
    read(json, "logits_scaling", config.logits_divisor, where);
    positive("embedding_multiplier", config.embedding_scale);
    positive("attention_multiplier", config.attention_scale);
    positive("residual_multiplier", config.residual_multiplier);
    positive("logits_scaling", config.logits_divisor);
  }
}

std::string parse_activation(const Json& json, const LlamaFamily& family, const std::string& where) {
  std::string name = family.activation;
  read(json, "hidden_act", name, where);
  read(json, "hidden_activation", name, where);  // Gemma before transformers 5; null there: the family's own
  if (name == "swish") return "silu";
  // Gemma's first files say `gelu` and mean the approximation that the model was trained with.
  if (name == "gelu_new" || (name == "gelu" && std::string(family.model_type) == "gemma")) return "gelu_pytorch_tanh";
  MOH_CHECK(name == "silu" || name == "gelu" || name == "gelu_pytorch_tanh", "[", where, "] hidden_act `", name,
            "` is not supported; supported: silu, gelu, gelu_pytorch_tanh");
  return name;
}

bool has_bias(Bias rule, const Json& json, const char* key, const std::string& where) {
  bool by_key = false;
  if (rule == Bias::kByKey) read(json, key, by_key, where);
  return rule == Bias::kAlways || by_key;
}

std::vector<bool> parse_rope_layers(const Json& json, const LlamaFamily& family, std::int64_t num_layers,
                                    const std::string& where) {
  std::int64_t interval = family.nope_interval;
  if (interval == 0) return {};
  read(json, "no_rope_layer_interval", interval, where);
  MOH_CHECK(interval > 0, "[", where, "] `no_rope_layer_interval` must be positive, got ", interval);
  std::vector<std::int64_t> has_rope;
  for (std::int64_t i = 0; i < num_layers; ++i) has_rope.push_back((i + 1) % interval != 0);
  read(json, "no_rope_layers", has_rope, where);  // 1: the layer has a rotary embedding
  MOH_CHECK(static_cast<std::int64_t>(has_rope.size()) >= num_layers, "[", where, "] `no_rope_layers` has ",
            has_rope.size(), " entries, the model has ", num_layers, " layers");
  return {has_rope.begin(), has_rope.begin() + num_layers};
}

std::vector<std::int64_t> parse_windows(const Json& json, const LlamaFamily& family, const LlamaConfig& config,
                                        const std::string& where) {
  if (family.window == WindowRule::kNone) return {};
  const std::int64_t num_layers = config.num_hidden_layers;
  std::int64_t window = family.sliding_window;
  if (const auto found = json.find("sliding_window"); found != json.end() && found->is_null()) window = 0;
  read(json, "sliding_window", window, where);
  bool used = family.window == WindowRule::kEveryLayer || family.window == WindowRule::kPattern;
  if (!used) read(json, "use_sliding_window", used, where);
  if (!used) window = 0;
  MOH_CHECK(window >= 0, "[", where, "] `sliding_window` must be positive or null, got ", window);

  std::vector<std::int64_t> windows(num_layers, 0);
  const auto types = json.find("layer_types");
  if (types != json.end() && !types->is_null()) {
    MOH_CHECK(types->is_array() && static_cast<std::int64_t>(types->size()) == num_layers, "[", where,
              "] `layer_types` must have one entry for each of the ", num_layers, " layers");
    for (std::int64_t i = 0; i < num_layers; ++i) {
      const Json& type = (*types)[i];
      const bool sliding = type == "sliding_attention";
      MOH_CHECK(sliding || type == "full_attention", "[", where, "] `layer_types` of layer ", i, " is ",
                type.dump().substr(0, 80), "; supported: full_attention, sliding_attention");
      MOH_CHECK(!sliding || window > 0, "[", where, "] layer ", i,
                " is of type sliding_attention, but `sliding_window` is not set or not used");
      MOH_CHECK(sliding || family.window != WindowRule::kEveryLayer || window == 0, "[", where, "] layer ", i,
                " is of type full_attention, but every layer of a ", family.model_type,
                " model has the sliding window");
      if (sliding) windows[i] = window;
    }
    return windows;
  }
  if (family.window == WindowRule::kPattern) {
    std::int64_t pattern = family.window_pattern;
    read(json, "sliding_window_pattern", pattern, where);
    MOH_CHECK(pattern > 0, "[", where, "] `sliding_window_pattern` must be positive, got ", pattern);
    for (std::int64_t i = 0; i < num_layers; ++i) windows[i] = (i + 1) % pattern != 0 ? window : 0;
    return windows;
  }
  std::int64_t first = 0;
  if (family.window == WindowRule::kUpperLayers) {
    first = family.max_window_layers;
    read(json, "max_window_layers", first, where);
  }
  for (std::int64_t i = std::max<std::int64_t>(first, 0); i < num_layers; ++i) {
    if (family.window != WindowRule::kNopeLayers || !config.has_rope(i)) windows[i] = window;
  }
  return windows;
}

Json rope_scaling_json(const layers::RopeScaling& scaling) {
  if (scaling.type == "default") return nullptr;
  Json json = {{"rope_type", scaling.type}, {"factor", scaling.factor}};
  if (scaling.type == "llama3") {
    json["low_freq_factor"] = scaling.low_freq_factor;
    json["high_freq_factor"] = scaling.high_freq_factor;
    json["original_max_position_embeddings"] = scaling.original_max_position_embeddings;
  }
  return json;
}

Json eos_json(const std::vector<std::int64_t>& ids) { return ids.size() == 1 ? Json(ids[0]) : Json(ids); }

// Keys that only some families have.
void write_family_keys(const LlamaConfig& config, const LlamaFamily& family, Json& json) {
  if (family.qkv_bias == Bias::kByKey) json["attention_bias"] = config.qkv_bias;
  if (family.mlp_bias == Bias::kByKey) json["mlp_bias"] = config.mlp_bias;
  if (family.partial_rotary) {
    json["partial_rotary_factor"] = static_cast<double>(config.rotary_size()) / static_cast<double>(config.head_dim);
  }
  if (family.multipliers) {
    json["embedding_multiplier"] = config.embedding_scale;
    json["attention_multiplier"] = config.attention_scale;
    json["residual_multiplier"] = config.residual_multiplier;
    json["logits_scaling"] = config.logits_divisor;
  }
  if (family.query_scalar > 0) {
    const auto cap = [](double value) { return value > 0 ? Json(value) : Json(nullptr); };
    json["query_pre_attn_scalar"] = 1 / (config.attention_scale * config.attention_scale);
    json["attn_logit_softcapping"] = cap(config.attention_soft_cap);
    json["final_logit_softcapping"] = cap(config.logits_soft_cap);
  }
  if (family.rope_local_theta > 0) json["rope_local_base_freq"] = config.rope_local_theta;
  if (family.nope_interval > 0) {
    for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) json["no_rope_layers"].push_back(config.has_rope(i));
    for (auto& item : json["no_rope_layers"]) item = item.get<bool>() ? 1 : 0;
  }
  if (family.window == WindowRule::kNone) return;
  std::int64_t window = 0;
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) window = std::max(window, config.window(i));
  json["sliding_window"] = window > 0 ? Json(window) : Json(nullptr);
  if (family.window == WindowRule::kEveryLayer) return;
  if (family.window != WindowRule::kPattern) json["use_sliding_window"] = window > 0;
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    json["layer_types"].push_back(config.window(i) > 0 ? "sliding_attention" : "full_attention");
  }
}

}  // namespace

std::vector<std::int64_t> parse_eos_token_id(const Json& json, const std::string& where) {
  const auto eos = json.find("eos_token_id");
  if (eos == json.end() || eos->is_null()) return {};
  std::vector<std::int64_t> ids(1);
  const bool fits = eos->is_array() ? detail::assign_json(*eos, ids) : detail::assign_json(*eos, ids[0]);
  MOH_CHECK(fits, "[", where, "] `eos_token_id` cannot be ", eos->dump().substr(0, 80));
  return ids;
}

LlamaConfig parse_model_part(const Json& source, const std::string& where) {
  const auto type = source.find("model_type");
  MOH_CHECK(type != source.end() && type->is_string(), "[", where, "] `model_type` is missing");
  const LlamaFamily* found = find_llama_family(type->get<std::string>());
  MOH_CHECK(found != nullptr, "[", where, "] model_type ", type->dump(),
            " is not supported; supported: ", llama_family_names());
  const LlamaFamily& family = *found;
  const Json json = with_one_rope(source, family, where);
  for (const char* key : {"quantization_config", "quantization"}) {  // the second is MLX's
    const auto quantization = json.find(key);
    MOH_CHECK(quantization == json.end() || quantization->is_null(), "[", where, "] the weights are quantised (`", key,
              "`), which is not supported; use the bf16 or fp16 model, or a GGUF file");
  }
  bool bidirectional = false;
  read(json, "use_bidirectional_attention", bidirectional, where);
  MOH_CHECK(!bidirectional, "[", where, "] `use_bidirectional_attention` is not supported");
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    MOH_CHECK(json.contains(key), "[", where, "] `", key, "` is missing");
  }

  LlamaConfig config;
  config.source = source;
  config.model_type = family.model_type;
  read(json, "vocab_size", config.vocab_size, where);
  read(json, "hidden_size", config.hidden_size, where);
  read(json, "intermediate_size", config.intermediate_size, where);
  read(json, "num_hidden_layers", config.num_hidden_layers, where);
  read(json, "num_attention_heads", config.num_attention_heads, where);
  MOH_CHECK(config.num_attention_heads > 0, "[", where, "] `num_attention_heads` must be positive, got ",
            config.num_attention_heads);
  MOH_CHECK(config.num_hidden_layers > 0 && config.num_hidden_layers <= 100000, "[", where,
            "] `num_hidden_layers` must be in 1..100000, got ", config.num_hidden_layers);
  // null says one KV head for each head, silence what the family assumes.
  const bool silent = !json.contains("num_key_value_heads") && family.num_key_value_heads > 0;
  config.num_key_value_heads = silent ? family.num_key_value_heads : config.num_attention_heads;
  read(json, "num_key_value_heads", config.num_key_value_heads, where);
  config.head_dim = family.head_dim > 0 ? family.head_dim : config.hidden_size / config.num_attention_heads;
  read(json, "head_dim", config.head_dim, where);
  config.max_position_embeddings = family.max_position_embeddings;
  read(json, "max_position_embeddings", config.max_position_embeddings, where);
  config.rms_norm_eps = family.rms_norm_eps;
  read(json, "rms_norm_eps", config.rms_norm_eps, where);
  read(json, "initializer_range", config.initializer_range, where);
  config.tie_word_embeddings = family.tie_word_embeddings;
  read(json, "tie_word_embeddings", config.tie_word_embeddings, where);
  read(json, "bos_token_id", config.bos_token_id, where);
  config.eos_token_id = parse_eos_token_id(json, where);

  config.rope_theta = family.rope_theta;
  read(json, "rope_theta", config.rope_theta, where);
  double rotated = 1;
  read(json, "partial_rotary_factor", rotated, where);
  // The second since transformers 5, which takes the first alone where a file has both.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const auto scaling = json.find(key);
    if (scaling == json.end() || scaling->empty()) continue;  // null, {}
    config.rope_scaling = parse_rope_scaling(*scaling, key, where);
    read(*scaling, "rope_theta", config.rope_theta, where);
    read(*scaling, "partial_rotary_factor", rotated, where);
    break;
  }
  MOH_CHECK(rotated == 1 || (family.partial_rotary && rotated > 0 && rotated < 1), "[", where,
            "] `partial_rotary_factor` ", rotated, " is not supported for ", family.model_type);
  if (rotated != 1) config.rotary_dim = static_cast<std::int64_t>(static_cast<double>(config.head_dim) * rotated);
  config.rope_local_theta = family.rope_local_theta;
  read(json, "rope_local_base_freq", config.rope_local_theta, where);

  config.activation = parse_activation(json, family, where);
  config.qkv_bias = has_bias(family.qkv_bias, json, "attention_bias", where);
  config.output_bias = has_bias(family.output_bias, json, "attention_bias", where);
  config.mlp_bias = has_bias(family.mlp_bias, json, "mlp_bias", where);
  config.query_key_norm = family.query_key_norm;
  config.norm_offset = family.norm_offset;
  config.norms = family.norms;
  config.fused_projections = family.fused_projections;
  parse_scales(json, family, config, where);
  config.rope_layers = parse_rope_layers(json, family, config.num_hidden_layers, where);
  config.windows = parse_windows(json, family, config, where);
  return config;
}

Json model_part_json(const LlamaConfig& config) {
  const LlamaFamily* family = find_llama_family(config.model_type);
  MOH_CHECK(family != nullptr, "[config] unknown family `", config.model_type, "`; known: ", llama_family_names());
  const bool fresh = config.source.empty();
  const LlamaConfig before = fresh ? LlamaConfig() : parse_model_part(config.source, "config.json");
  Json json = config.source;
  if (fresh) {
    json["architectures"] = {family->architecture};
    json["model_type"] = family->model_type;
    json["hidden_act"] = config.activation;
    json["attention_dropout"] = 0.0;
    json["use_cache"] = true;
  }
  const auto write = [&](const char* key, const auto& value, const auto& old) {
    if (fresh || value != old) json[key] = value;
  };
  write("vocab_size", config.vocab_size, before.vocab_size);
  write("hidden_size", config.hidden_size, before.hidden_size);
  write("intermediate_size", config.intermediate_size, before.intermediate_size);
  write("num_hidden_layers", config.num_hidden_layers, before.num_hidden_layers);
  write("num_attention_heads", config.num_attention_heads, before.num_attention_heads);
  write("num_key_value_heads", config.num_key_value_heads, before.num_key_value_heads);
  write("head_dim", config.head_dim, before.head_dim);
  write("max_position_embeddings", config.max_position_embeddings, before.max_position_embeddings);
  write("rms_norm_eps", config.rms_norm_eps, before.rms_norm_eps);
  write("initializer_range", config.initializer_range, before.initializer_range);
  write("tie_word_embeddings", config.tie_word_embeddings, before.tie_word_embeddings);
  if (!fresh) {
    if (config.bos_token_id != before.bos_token_id) json["bos_token_id"] = config.bos_token_id;
    if (config.eos_token_id != before.eos_token_id) json["eos_token_id"] = eos_json(config.eos_token_id);
    return json;
  }
  write_family_keys(config, *family, json);
  json["rope_theta"] = config.rope_theta;
  json["rope_scaling"] = rope_scaling_json(config.rope_scaling);
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (!config.eos_token_id.empty()) json["eos_token_id"] = eos_json(config.eos_token_id);
  json["torch_dtype"] = "float32";
  return json;
}

}  // namespace moh::models
