#include "moh/models/llama.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <filesystem>
#include <limits>
#include <unordered_map>

#include "moh/base/error.h"
#include "moh/layers/rope.h"
#include "moh/layers/window_attention.h"
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

// With an offset (Gemma) the product with weight + offset is rounded once, from fp32, as that family was trained.
Tensor rms_norm(const Tensor& x, const Tensor& weight, const LlamaConfig& config) {
  if (config.norm_offset == 0) return at::rms_norm(x, weight.sizes(), weight, config.rms_norm_eps);
  const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::rms_norm(x.to(wide), weight.sizes(), weight.to(wide) + config.norm_offset, config.rms_norm_eps)
      .to(x.scalar_type());
}

Tensor activate(const Tensor& x, const std::string& activation) {
  if (activation == "silu") return at::silu(x);
  return at::gelu(x, activation == "gelu" ? "none" : "tanh");
}

std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    case at::kDouble:
      return "float64";
    default:
      return "float32";
  }
}

// One stray id would read beyond the table, with a message that names nothing.
void check_ids(const Tensor& ids, std::int64_t vocab_size) {
  MOH_CHECK(ids.dim() == 2 && ids.numel() > 0, "[llama] ids must be [B, T] with at least one id, got ", ids.sizes());
  if (!ids.is_cpu()) return;  // looking would stop the device; its own check ends the process
  const auto [least, most] = at::aminmax(ids);
  const auto low = least.item<std::int64_t>(), high = most.item<std::int64_t>();
  MOH_CHECK(low >= 0 && high < vocab_size, "[llama] token id ", low < 0 ? low : high,
            " is outside the model's vocabulary of ", vocab_size);
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
  const auto norm = [&](const std::string& name, std::int64_t size) {
    specs.push_back({name + ".weight", {size}, false});
  };

  matrix("model.embed_tokens", config.vocab_size, hidden);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = layer_prefix(layer), attention = prefix + "self_attn.";
    norm(prefix + "input_layernorm", hidden);
    matrix(attention + "q_proj", q_rows, hidden, config.qkv_bias);
    matrix(attention + "k_proj", kv_rows, hidden, config.qkv_bias);
    matrix(attention + "v_proj", kv_rows, hidden, config.qkv_bias);
    matrix(attention + "o_proj", hidden, q_rows, config.output_bias);
    if (config.query_key_norm) {
      norm(attention + "q_norm", config.head_dim);
      norm(attention + "k_norm", config.head_dim);
    }
    if (config.moh && config.moh->router == "two-stage") {  // the matrices that each case needs: spec, section 1
      const std::int64_t group = config.heads_per_choice();
      const std::int64_t shared = config.shared_heads(layer) / group, top_k = config.top_k(layer) / group;
      if (top_k > 0) matrix(attention + "wg", heads / group - shared, hidden);
      if (shared > 1) matrix(attention + "wg_1", shared, hidden);
      if (shared > 0 && top_k > 0) matrix(attention + "wg_0", 2, hidden);
    }
    norm(prefix + "post_attention_layernorm", hidden);
    matrix(prefix + "mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
    matrix(prefix + "mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
    matrix(prefix + "mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
  }
  norm("model.norm", hidden);
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
    layer.q_norm = optionally(attention + "q_norm.weight");
    layer.k_norm = optionally(attention + "k_norm.weight");
    layer.router.wg = optionally(attention + "wg.weight");
    layer.router.wg_1 = optionally(attention + "wg_1.weight");
    layer.router.wg_0 = optionally(attention + "wg_0.weight");
    layer.router.order = choice_order(config_, i, layer.q.device());
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
      tensor.fill_(spec.name.ends_with(".bias") ? 0.0 : 1.0 - config.norm_offset);
    }
    tensors.emplace_back(spec.name, tensor);
  }
  return Llama(config, std::move(tensors));
}

Llama Llama::load(const std::string& folder, optional<at::ScalarType> dtype, ReadAs as) {
  LlamaConfig config = parse_llama_config(io::load_config(folder), folder + "/config.json", as);
  return Llama(std::move(config), io::load_tensors(folder, dtype));
}

void Llama::save(const std::string& folder) const {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  MOH_CHECK(!error, "[llama] cannot make folder ", folder, ": ", error.message());
  Json json = llama_config_json(config_);
  const std::string dtype = dtype_name(embedding_.scalar_type());
  if (json.contains("dtype")) {  // transformers 5
    json["dtype"] = dtype;
  } else if (json.contains("torch_dtype") || dtype != "float32") {
    json["torch_dtype"] = dtype;
  }
  io::save_tensors(folder + "/model.safetensors", parameters_);
  io::save_json(folder + "/config.json", json);
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
  // norm router needs every query: before RoPE, which keeps norms, and before the family's own query norm, after which
  // every head's norm is about the same (Qwen3: sqrt(head_dim) but for its weights).
  optional<ops::Routing> routing;
  if (config_.moh && config_.moh->router != "norm") {
    routing = route_layer(config_, index, x, {}, layer.router);
  }
  Tensor query = routing ? ops::project_heads(x, layer.q, layer.q_bias, routing->gates)
                         : split(at::linear(x, layer.q, layer.q_bias), heads);
  if (config_.moh && !routing) {
    routing = route_layer(config_, index, x, query, layer.router);
    if (config_.moh->straight_through == "none") routing->gates = routing->gates.detach();
  }
  if (input.leaf_gates && routing) routing->gates = routing->gates.detach().set_requires_grad(true);
  if (input.keep_router_inputs) output.router_inputs.push_back({x, query});
  Tensor key = split(at::linear(x, layer.k, layer.k_bias), config_.num_key_value_heads);
  Tensor value = split(at::linear(x, layer.v, layer.v_bias), config_.num_key_value_heads);
  if (config_.query_key_norm) {
    query = rms_norm(query, *layer.q_norm, config_);
    key = rms_norm(key, *layer.k_norm, config_);
    query = query.to(value.scalar_type());  // autocast on CUDA leaves norms in fp32
    key = key.to(value.scalar_type());
  }
  if (config_.has_rope(index)) {
    query = layers::apply_rope(query, rope);
    key = layers::apply_rope(key, rope);
  }
  if (input.cache != nullptr) {
    KvCache& cache = *input.cache;
    cache.key[index].narrow(2, cache.length, tokens).copy_(key.transpose(1, 2));
    cache.value[index].narrow(2, cache.length, tokens).copy_(value.transpose(1, 2));
    key = cache.key[index].narrow(2, 0, cache.length + tokens).transpose(1, 2);
    value = cache.value[index].narrow(2, 0, cache.length + tokens).transpose(1, 2);
  }

  const auto attend = [&](const Tensor& gates, bool all_gradients) {
    layers::HeadAttention attention = &ops::head_attention;
    if (all_gradients) attention = &ops::head_attention_composite;
    const std::int64_t window = config_.window(index);
    return window > 0 ? layers::window_attention(attention, query, key, value, gates, bias, window)
                      : attention(query, key, value, gates, bias, /*causal=*/true, std::nullopt);
  };
  if (!routing) {
    const Tensor gates = at::ones({batch, tokens, heads}, query.options().dtype(at::kFloat).requires_grad(false));
    return at::linear(attend(gates, false).flatten(2), layer.o, layer.o_bias);
  }
  const MohConfig& moh = *config_.moh;
  const Tensor gates = routing->gates;
  if (moh.top_k[index] > 0) {
    balance_losses.push_back(ops::load_balance_loss(routing->probabilities, routing->indices, moh.balance));
  }
  output.routing.push_back(std::move(*routing));
  if (moh.straight_through == "all" && gates.requires_grad()) {  // every gate has a gradient: every head is computed
    return at::linear(attend(gates, true).flatten(2), layer.o, layer.o_bias);
  }
  return ops::combine_heads(attend(gates, false), layer.o, layer.o_bias, gates);
}

LlamaOutput Llama::forward(const LlamaInput& input) const {
  check_ids(input.ids, config_.vocab_size);
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
  // The factor is rounded to the weights' type first, as the family was trained.
  if (config_.embedding_scale != 1) hidden = hidden * at::scalar_tensor(config_.embedding_scale, options);
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    const Layer& layer = layers_[i];
    if (input.keep_hidden) output.hidden.push_back(hidden);
    hidden =
        hidden + attention(i, rms_norm(hidden, layer.input_norm, config_), rope, bias, input, output, balance_losses);
    const Tensor x = rms_norm(hidden, layer.post_norm, config_);
    hidden = hidden + at::linear(activate(at::linear(x, layer.gate, layer.gate_bias), config_.activation) *
                                     at::linear(x, layer.up, layer.up_bias),
                                 layer.down, layer.down_bias);
  }
  if (input.cache != nullptr) input.cache->length += tokens;
  output.last_hidden = rms_norm(hidden, final_norm_, config_);
  output.logits =
      at::linear(input.last_only ? output.last_hidden.narrow(1, tokens - 1, 1) : output.last_hidden, lm_head_);
  if (!balance_losses.empty()) output.load_balance_loss = at::stack(balance_losses).mean();
  return output;
}

}  // namespace moh::models
