#include "moh/models/llama.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <filesystem>
#include <limits>
#include <unordered_map>

#include "moh/base/error.h"
#include "moh/layers/rope.h"
#include "moh/models/llama_routing.h"
#include "moh/ops/head_attention.h"
#include "moh/ops/projection.h"

namespace moh::models {
namespace {

using at::Tensor;
using std::optional;

std::string layer_prefix(std::int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

// Buffers that old checkpoints carry although they follow from the configuration.
bool is_derived(const std::string& name) { return name.ends_with("rotary_emb.inv_freq"); }

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return at::rms_norm(x, weight.sizes(), weight, eps);
}

}  // namespace

std::vector<ParameterSpec> llama_parameters(const LlamaConfig& config) {
  const std::int64_t hidden = config.hidden_size, heads = config.num_attention_heads;
  const std::int64_t q_rows = heads * config.head_dim, kv_rows = config.num_key_value_heads * config.head_dim;
  std::vector<ParameterSpec> specs;
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t columns, bool has_bias = false) {
    specs.push_back({name + ".weight", {rows, columns}, true});
    if (has_bias) specs.push_back({name + ".bias", {rows}, false});
  };
  const auto norm = [&](const std::string& name) { specs.push_back({name + ".weight", {hidden}, false}); };

  matrix("model.embed_tokens", config.vocab_size, hidden);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = layer_prefix(layer), attention = prefix + "self_attn.";
    norm(prefix + "input_layernorm");
    matrix(attention + "q_proj", q_rows, hidden, config.attention_bias);
    matrix(attention + "k_proj", kv_rows, hidden, config.attention_bias);
    matrix(attention + "v_proj", kv_rows, hidden, config.attention_bias);
    matrix(attention + "o_proj", hidden, q_rows, config.attention_bias);
    if (config.moh && config.moh->router == "two-stage") {  // the matrices that each case needs: spec, section 1
      const std::int64_t group = config.heads_per_choice();
      const std::int64_t shared = config.shared_heads(layer) / group, top_k = config.top_k(layer) / group;
      if (top_k > 0) matrix(attention + "wg", heads / group - shared, hidden);
      if (shared > 1) matrix(attention + "wg_1", shared, hidden);
      if (shared > 0 && top_k > 0) matrix(attention + "wg_0", 2, hidden);
    }
    norm(prefix + "post_attention_layernorm");
    matrix(prefix + "mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
    matrix(prefix + "mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
    matrix(prefix + "mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
  }
  norm("model.norm");
  if (!config.tie_word_embeddings) matrix("lm_head", config.vocab_size, hidden);
  return specs;
}

Llama::Llama(LlamaConfig config, io::NamedTensors tensors) : config_(std::move(config)) {
  std::unordered_map<std::string, Tensor> by_name;
  for (auto& [name, tensor] : tensors) by_name.emplace(name, tensor);
  for (const ParameterSpec& spec : llama_parameters(config_)) {
    const auto found = by_name.find(spec.name);
    MOH_CHECK(found != by_name.end(), "[llama] tensor `", spec.name, "` is missing from the checkpoint");
    MOH_CHECK(found->second.sizes() == at::IntArrayRef(spec.shape), "[llama] tensor `", spec.name, "` must be ",
              at::IntArrayRef(spec.shape), " by config.json, got ", found->second.sizes());
    MOH_CHECK(at::isFloatingType(found->second.scalar_type()), "[llama] tensor `", spec.name,
              "` must be of a floating type, got ", found->second.scalar_type());
    parameters_.emplace_back(spec.name, found->second);
    by_name.erase(found);
  }
  if (config_.tie_word_embeddings) by_name.erase("lm_head.weight");  // the same tensor once more
  for (const auto& [name, tensor] : by_name) {
    MOH_CHECK(is_derived(name), "[llama] tensor `", name,
              "` of the checkpoint has no place in the model of config.json");
  }
  bind();
}

void Llama::bind() {
  std::unordered_map<std::string, Tensor> by_name(parameters_.begin(), parameters_.end());
  const auto optionally = [&](const std::string& name) -> optional<Tensor> {
    const auto found = by_name.find(name);
    return found == by_name.end() ? std::nullopt : optional<Tensor>(found->second);
  };
  layers_.clear();
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    const std::string prefix = layer_prefix(i), attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    Layer layer;
    layer.input_norm = by_name.at(prefix + "input_layernorm.weight");
    layer.post_norm = by_name.at(prefix + "post_attention_layernorm.weight");
    layer.q = by_name.at(attention + "q_proj.weight");
    layer.k = by_name.at(attention + "k_proj.weight");
    layer.v = by_name.at(attention + "v_proj.weight");
    layer.o = by_name.at(attention + "o_proj.weight");
    layer.q_bias = optionally(attention + "q_proj.bias");
    layer.k_bias = optionally(attention + "k_proj.bias");
    layer.v_bias = optionally(attention + "v_proj.bias");
    layer.o_bias = optionally(attention + "o_proj.bias");
    layer.wg = optionally(attention + "wg.weight");
    layer.wg_1 = optionally(attention + "wg_1.weight");
    layer.wg_0 = optionally(attention + "wg_0.weight");
    layer.gate = by_name.at(mlp + "gate_proj.weight");
    layer.up = by_name.at(mlp + "up_proj.weight");
    layer.down = by_name.at(mlp + "down_proj.weight");
    layer.gate_bias = optionally(mlp + "gate_proj.bias");
    layer.up_bias = optionally(mlp + "up_proj.bias");
    layer.down_bias = optionally(mlp + "down_proj.bias");
    layers_.push_back(std::move(layer));
  }
  embedding_ = by_name.at("model.embed_tokens.weight");
  final_norm_ = by_name.at("model.norm.weight");
  lm_head_ = config_.tie_word_embeddings ? embedding_ : by_name.at("lm_head.weight");
  inverse_frequencies_ = layers::rope_inverse_frequencies(config_.head_dim, config_.rope_theta, config_.rope_scaling)
                             .to(embedding_.device());
}

Llama Llama::initialize(const LlamaConfig& config, std::uint64_t seed) {
  check_llama_config(config, "llama");
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  io::NamedTensors tensors;
  for (const ParameterSpec& spec : llama_parameters(config)) {
    Tensor tensor = at::empty(spec.shape, at::TensorOptions(at::kFloat));
    if (spec.decays) {
      tensor.normal_(0.0, config.initializer_range, generator);
    } else {
      tensor.fill_(spec.name.ends_with(".bias") ? 0.0 : 1.0);
    }
    tensors.emplace_back(spec.name, tensor);
  }
  return Llama(config, std::move(tensors));
}

Llama Llama::load(const std::string& folder, optional<at::ScalarType> dtype) {
  LlamaConfig config = parse_llama_config(io::load_config(folder), folder + "/config.json");
  io::NamedTensors tensors = io::load_tensors(folder);
  if (dtype) {
    for (auto& [name, tensor] : tensors) tensor = tensor.to(*dtype);
  }
  return Llama(std::move(config), std::move(tensors));
}

void Llama::save(const std::string& folder) const {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  MOH_CHECK(!error, "[llama] cannot make folder ", folder, ": ", error.message());
  io::save_tensors(folder + "/model.safetensors", parameters_);
  io::save_json(folder + "/config.json", llama_config_json(config_));
}

std::int64_t Llama::num_parameters() const {
  std::int64_t count = 0;
  for (const auto& [name, tensor] : parameters_) count += tensor.numel();
  return count;
}

void Llama::to(at::Device device) {
  for (auto& [name, tensor] : parameters_) tensor = tensor.to(device);
  bind();
}

void Llama::set_requires_grad(bool requires_grad) {
  for (auto& [name, tensor] : parameters_) tensor.set_requires_grad(requires_grad);
}

KvCache Llama::make_cache(std::int64_t batch, std::int64_t capacity) const {
  KvCache cache;
  cache.capacity = capacity;
  for (std::int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    const std::vector<std::int64_t> shape = {batch, config_.num_key_value_heads, capacity, config_.head_dim};
    cache.key.push_back(at::empty(shape, embedding_.options().requires_grad(false)));
    cache.value.push_back(at::empty(shape, embedding_.options().requires_grad(false)));
  }
  return cache;
}

Tensor Llama::attention(std::int64_t index, const Tensor& x, const layers::RopeTable& rope,
                        const optional<Tensor>& bias, const LlamaInput& input, LlamaOutput& output,
                        std::vector<Tensor>& balance_losses) const {
  const Layer& layer = layers_[index];
  const std::int64_t batch = x.size(0), tokens = x.size(1), heads = config_.num_attention_heads;
  const auto split = [&](const Tensor& rows, std::int64_t count) {
    return rows.reshape({batch, tokens, count, config_.head_dim});
  };
  // A trained router decides from x alone, before any query is computed: queries of unselected heads never are. The
  // norm router needs every query.
  optional<ops::Routing> routing;
  if (config_.moh && config_.moh->router != "norm") {
    routing = route_layer(config_, index, x, {}, {layer.wg, layer.wg_1, layer.wg_0});
  }
  const Tensor plain_query = routing ? ops::project_heads(x, layer.q, layer.q_bias, routing->gates)
                                     : split(at::linear(x, layer.q, layer.q_bias), heads);
  if (config_.moh && !routing) {
    routing = route_layer(config_, index, x, plain_query, {});
    if (config_.moh->straight_through == "none") routing->gates = routing->gates.detach();
  }
  if (input.leaf_gates && routing) routing->gates = routing->gates.detach().set_requires_grad(true);
  if (input.keep_router_inputs) output.router_inputs.push_back({x, plain_query});
  const Tensor query = layers::apply_rope(plain_query, rope);
  Tensor key = layers::apply_rope(split(at::linear(x, layer.k, layer.k_bias), config_.num_key_value_heads), rope);
  Tensor value = split(at::linear(x, layer.v, layer.v_bias), config_.num_key_value_heads);
  if (input.cache != nullptr) {
    KvCache& cache = *input.cache;
    cache.key[index].narrow(2, cache.length, tokens).copy_(key.transpose(1, 2));
    cache.value[index].narrow(2, cache.length, tokens).copy_(value.transpose(1, 2));
    key = cache.key[index].narrow(2, 0, cache.length + tokens).transpose(1, 2);
    value = cache.value[index].narrow(2, 0, cache.length + tokens).transpose(1, 2);
  }

  if (!routing) {
    const Tensor gates = at::ones({batch, tokens, heads}, query.options().dtype(at::kFloat).requires_grad(false));
    const Tensor attended = ops::head_attention(query, key, value, gates, bias, /*causal=*/true);
    return at::linear(attended.flatten(2), layer.o, layer.o_bias);
  }
  const MohConfig& moh = *config_.moh;
  const Tensor gates = routing->gates;
  if (moh.top_k[index] > 0) {
    balance_losses.push_back(ops::load_balance_loss(routing->probabilities, routing->indices, moh.balance));
  }
  output.routing.push_back(std::move(*routing));
  if (moh.straight_through == "all" &&
      gates.requires_grad()) {  // every gate gets a gradient, so every head is computed
    const Tensor attended = ops::head_attention_composite(query, key, value, gates, bias, /*causal=*/true);
    return at::linear(attended.flatten(2), layer.o, layer.o_bias);
  }
  const Tensor attended = ops::head_attention(query, key, value, gates, bias, /*causal=*/true);
  return ops::combine_heads(attended, layer.o, layer.o_bias, gates);
}

LlamaOutput Llama::forward(const LlamaInput& input) const {
  MOH_CHECK(input.ids.dim() == 2, "[llama] ids must be [B, T], got ", input.ids.sizes());
  const std::int64_t tokens = input.ids.size(1);
  const std::int64_t past = input.cache != nullptr ? input.cache->length : 0;
  MOH_CHECK(past + tokens <= config_.max_position_embeddings, "[llama] ", past + tokens,
            " tokens do not fit into the model's context of ", config_.max_position_embeddings);
  MOH_CHECK(input.cache == nullptr || past + tokens <= input.cache->capacity, "[llama] ", past + tokens,
            " tokens do not fit into a KV cache of ", input.cache != nullptr ? input.cache->capacity : 0);

  LlamaOutput output;
  const auto options = embedding_.options().requires_grad(false);
  const Tensor positions =
      input.position_ids ? *input.position_ids : at::arange(past, past + tokens, options.dtype(at::kLong));
  const layers::RopeTable rope = layers::rope_table(inverse_frequencies_, positions);
  optional<Tensor> bias;
  if (input.attention_mask) {
    const Tensor& mask = *input.attention_mask;
    MOH_CHECK(mask.dim() == 2 && mask.size(0) == input.ids.size(0) && mask.size(1) == past + tokens,
              "[llama] attention_mask must be [B, S] = [", input.ids.size(0), ", ", past + tokens, "], got ",
              mask.sizes());
    bias = at::zeros(mask.sizes(), options)
               .masked_fill(mask.eq(0), -std::numeric_limits<double>::infinity())
               .unsqueeze(1)
               .unsqueeze(1);
  }

  std::vector<Tensor> balance_losses;
  Tensor hidden = at::embedding(embedding_, input.ids);
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    const Layer& layer = layers_[i];
    if (input.keep_hidden) output.hidden.push_back(hidden);
    hidden = hidden + attention(i, rms_norm(hidden, layer.input_norm, config_.rms_norm_eps), rope, bias, input, output,
                                balance_losses);
    const Tensor x = rms_norm(hidden, layer.post_norm, config_.rms_norm_eps);
    hidden = hidden +
             at::linear(at::silu(at::linear(x, layer.gate, layer.gate_bias)) * at::linear(x, layer.up, layer.up_bias),
                        layer.down, layer.down_bias);
  }
  if (input.cache != nullptr) input.cache->length += tokens;
  output.last_hidden = rms_norm(hidden, final_norm_, config_.rms_norm_eps);
  output.logits =
      at::linear(input.last_only ? output.last_hidden.narrow(1, tokens - 1, 1) : output.last_hidden, lm_head_);
  if (!balance_losses.empty()) output.load_balance_loss = at::stack(balance_losses).mean();
  return output;
}

}  // namespace moh::models
