#include "moh/models/llama.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <limits>
#include <map>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/io/gguf_model.h"
#include "moh/io/model_folder.h"
#include "moh/layers/recompute.h"
#include "moh/layers/rope.h"
#include "moh/models/llama_routing.h"
#include "moh/ops/head_attention.h"

namespace moh::models {
namespace {

using at::Tensor;
using std::nullopt;
using std::optional;

constexpr const char* kEmbedding = "model.embed_tokens";

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

// A block's norms as the family's tensors are called; nullptr: has none there.
struct NormNames {
  const char *before_attention, *after_attention, *before_mlp, *after_mlp;
};
NormNames norm_names(const LlamaConfig& config) {
  switch (config.norms) {
    case NormPlaces::kAfter:
      return {nullptr, "post_attention_layernorm", nullptr, "post_feedforward_layernorm"};
    case NormPlaces::kAround:
      return {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"};
    default:
      return {"input_layernorm", nullptr, "post_attention_layernorm", nullptr};
  }
}

}  // namespace

ParameterSpecs llama_parameters(const LlamaConfig& config) {
  const std::int64_t hidden = config.hidden_size, heads = config.num_attention_heads;
  const std::int64_t q_rows = heads * config.head_dim, kv_rows = config.num_key_value_heads * config.head_dim;
  ParameterSpecs specs;
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t columns, bool has_bias = false) {
    specs.push_back({name + ".weight", {rows, columns}});
    if (has_bias) specs.push_back({name + ".bias", {rows}, /*decays=*/false});
  };
  const auto norm = [&](const std::string& name, std::int64_t size) {
    specs.push_back({name + ".weight", {size}, /*decays=*/false});
  };

  matrix(kEmbedding, config.vocab_size, hidden);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = layer_prefix(layer), attention = prefix + "self_attn.";
    const NormNames norms = norm_names(config);
    if (norms.before_attention) norm(prefix + norms.before_attention, hidden);
    if (config.fused_projections) {
      matrix(attention + "qkv_proj", q_rows + 2 * kv_rows, hidden, config.qkv_bias);
    } else {
      matrix(attention + "q_proj", q_rows, hidden, config.qkv_bias);
      matrix(attention + "k_proj", kv_rows, hidden, config.qkv_bias);
      matrix(attention + "v_proj", kv_rows, hidden, config.qkv_bias);
    }
    matrix(attention + "o_proj", hidden, q_rows, config.output_bias);
    if (config.query_key_norm != QueryKeyNorm::kNone) {
      const bool whole = config.query_key_norm == QueryKeyNorm::kProjection;
      norm(attention + "q_norm", whole ? q_rows : config.head_dim);
      norm(attention + "k_norm", whole ? kv_rows : config.head_dim);
    }
    if (config.moh) {
      for (const auto& tensor : config.moh->router->tensors(router_setting(config, layer))) {
        specs.push_back({attention + tensor.name, tensor.shape, tensor.decays});
      }
    }
    for (const char* name : {norms.after_attention, norms.before_mlp, norms.after_mlp}) {
      if (name != nullptr) norm(prefix + name, hidden);
    }
    if (config.fused_projections) {
      matrix(prefix + "mlp.gate_up_proj", 2 * config.intermediate_size, hidden, config.mlp_bias);
    } else {
      matrix(prefix + "mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
      matrix(prefix + "mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
    }
    matrix(prefix + "mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
  }
  norm("model.norm", hidden);
  matrix("lm_head", config.vocab_size, hidden);
  if (config.tie_word_embeddings) specs.back().tied_to = std::string(kEmbedding) + ".weight";
  return specs;
}

Llama::Llama(LlamaConfig config, io::NamedTensors tensors)
    : config_(std::move(config)),
      parameters_({.model = "llama", .is_derived = is_derived}, llama_parameters(config_), std::move(tensors)) {
  bind();
}

void Llama::bind() {
  const auto linear = [&](const std::string& name, layers::Product product = layers::Product::kPlain) {
    return parameters_.linear(name, product);
  };
  // What may skip heads falls back on the same product where skipping does not pay.
  const auto skipping = [&](bool may_skip) { return may_skip ? layers::Product::kFastest : layers::Product::kPlain; };
  layers_.clear();
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    const std::string prefix = layer_prefix(i), attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    Layer layer;
    const auto norm = [&](const char* name) -> optional<Tensor> {
      return name != nullptr ? optional(parameters_[prefix + name + ".weight"]) : std::nullopt;
    };
    const NormNames norms = norm_names(config_);
    layer.before_attention = norm(norms.before_attention);
    layer.after_attention = norm(norms.after_attention);
    layer.before_mlp = norm(norms.before_mlp);
    layer.after_mlp = norm(norms.after_mlp);
    if (config_.moh) {
      layer.router = layers::make_router(config_.moh->router,
                                         [&](const std::string& name) { return parameters_.find(attention + name); });
      layer.order = choice_order(config_, i, device());
    }
    layer.attention.num_heads = config_.num_attention_heads;
    layer.attention.num_kv_heads = config_.num_key_value_heads;
    layer.attention.router = layer.router.get();
    // A norm over the queries of all heads wants them all.
    layer.attention.every_query = config_.query_key_norm == QueryKeyNorm::kProjection;
    if (config_.fused_projections) {
      layer.attention.in = layers::Projections::of_joint(linear(attention + "qkv_proj", layers::Product::kFastest),
                                                         config_.num_attention_heads * config_.head_dim);
    } else {
      layer.attention.in.query =
          linear(attention + "q_proj", skipping(layer.router != nullptr && !layer.router->needs_query()));
      layer.attention.in.key = linear(attention + "k_proj");
      layer.attention.in.value = linear(attention + "v_proj");
    }
    layer.attention.out = linear(attention + "o_proj", skipping(layer.router != nullptr));
    layer.q_norm = parameters_.find(attention + "q_norm.weight");
    layer.k_norm = parameters_.find(attention + "k_norm.weight");
    if (config_.fused_projections) {
      const layers::Linear both = linear(mlp + "gate_up_proj", layers::Product::kFastest);
      layer.gate = both.rows(0, config_.intermediate_size);
      layer.up = both.rows(config_.intermediate_size, config_.intermediate_size);
    } else {
      layer.gate = linear(mlp + "gate_proj");
      layer.up = linear(mlp + "up_proj");
    }
    layer.down = linear(mlp + "down_proj");
    layers_.push_back(std::move(layer));
  }
  embedding_ = parameters_[std::string(kEmbedding) + ".weight"];
  final_norm_ = parameters_["model.norm.weight"];
  lm_head_ = linear("lm_head");
  inverse_frequencies_ =
      layers::rope_inverse_frequencies(config_.rotary_size(), config_.rope_theta, config_.rope_scaling).to(device());
  if (config_.rope_local_theta > 0) {
    local_frequencies_ =
        layers::rope_inverse_frequencies(config_.rotary_size(), config_.rope_local_theta, {}).to(device());
  }
}

Llama Llama::initialize(const LlamaConfig& config, std::uint64_t seed) {
  check_llama_config(config, "llama");
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  return Llama(config, draw_parameters(llama_parameters(config), [&](const ParameterSpec& spec, Tensor& tensor) {
                 if (spec.decays) {
                   tensor.normal_(0.0, config.initializer_range, generator);
                 } else if (!spec.name.ends_with(".bias")) {
                   tensor.fill_(1.0 - config.norm_offset);
                 }
               }));
}

Llama Llama::load(const std::string& folder, optional<at::ScalarType> dtype, ReadAs as) {
  io::ModelFolder files = io::load_model(
      folder, dtype, [as](const Json& config, const std::string& where) { parse_llama_config(config, where, as); });
  LlamaConfig config = parse_llama_config(files.config, files.described_by, as);
  return Llama(std::move(config), std::move(files.tensors));
}

void Llama::save(const std::string& folder) const {
  Json json = llama_config_json(config_);
  const std::string dtype = dtype_name(embedding_.scalar_type());
  if (json.contains("dtype")) {  // transformers 5
    json["dtype"] = dtype;
  } else if (json.contains("torch_dtype") || dtype != "float32") {
    json["torch_dtype"] = dtype;
  }
  parameters_.save(folder, json);
}

void Llama::to(at::Device device) {
  parameters_.to(device);
  bind();
}

std::int64_t Llama::pack_weights(ops::WeightStorage storage, const std::string& folder) {
  const bool kept_as_they_are = storage == ops::WeightStorage::kSame || folder.empty();
  if (const auto gguf = kept_as_they_are ? nullopt : io::find_gguf(folder)) {
    static const std::map<std::string, kernels::WeightBlocks> kinds = {{"Q8_0", kernels::WeightBlocks::kQ8_0},
                                                                       {"Q4_0", kernels::WeightBlocks::kQ4_0},
                                                                       {"Q4_1", kernels::WeightBlocks::kQ4_1}};
    std::vector<std::string> types;
    for (const auto& [type, kind] : kinds) {
      if (ops::stores(storage, kind) || kind == kernels::WeightBlocks::kQ8_0) types.push_back(type);
    }
    for (io::StoredBlocks& blocks : io::GgufModel(*gguf).blocks(types)) {
      parameters_.know_blocks(blocks.name, {std::move(blocks.bytes), kinds.at(blocks.type)});
    }
    bind();
  }
  std::int64_t bytes = 0;
  const auto pack = [&](layers::Linear& linear, ops::WeightStorage as) {
    linear = linear.packed(as);
    bytes += linear.packed_bytes();
  };
  for (Layer& layer : layers_) {
    layers::Projections& in = layer.attention.in;
    for (layers::Linear* const each : {&in.query, &in.key, &in.value, &in.key_value, &in.joint, &layer.attention.out,
                                       &layer.gate, &layer.up, &layer.down}) {
      if (each->defined()) pack(*each, storage);
    }
  }
  // Of 8 bits where the rest has 4, as llama.cpp has it: in 4 it cost SmolLM2-135M 11 % of perplexity.
  pack(lm_head_, storage == ops::WeightStorage::kInt4 ? ops::WeightStorage::kInt8 : storage);
  is_packed_ = true;
  return bytes;
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

Tensor Llama::attend(std::int64_t index, layers::ProjectedHeads heads, const layers::Gates& gates,
                     const Pass& pass) const {
  auto& [query, key, value] = heads;
  const Layer& layer = layers_[index];
  const auto normed = [&](const Tensor& rows, const Tensor& weight) {
    const bool whole = config_.query_key_norm == QueryKeyNorm::kProjection;
    const Tensor result = rms_norm(whole ? rows.flatten(2) : rows, weight, config_).view(rows.sizes());
    return result.to(value.scalar_type());  // autocast on CUDA leaves norms in fp32
  };
  if (layer.q_norm) {
    query = normed(query, *layer.q_norm);
    key = normed(key, *layer.k_norm);
  }
  const std::int64_t window = config_.window(index);
  if (config_.has_rope(index)) {
    const layers::RopeTable& rope = window > 0 && local_frequencies_.defined() ? pass.local_rope : pass.rope;
    query = layers::apply_rope(query, rope);
    key = layers::apply_rope(key, rope);
  }
  if (KvCache* const cache = pass.input.cache) {
    const std::int64_t tokens = query.size(1);
    const auto kept = [&](const Tensor& all, const Tensor& rows) {
      all.narrow(2, cache->length, tokens).copy_(rows.transpose(1, 2));
      return all.narrow(2, 0, cache->length + tokens).transpose(1, 2);
    };
    key = kept(cache->key[index], key);
    value = kept(cache->value[index], value);
  }
  ops::AttentionVariant variant;
  variant.causal = true;
  variant.window = window;
  variant.soft_cap = config_.attention_soft_cap;
  variant.bias = pass.bias;
  if (config_.attention_scale > 0) variant.scale = config_.attention_scale;
  if (const PagedKeys* const paged = pass.input.paged) {
    const Tensor pool = (*paged->pools)[index].transpose(1, 2);  // [P, page, Hkv, 2 D]
    const std::int64_t page = pool.size(1), dim = config_.head_dim;
    pool.index_put_({paged->slots.div(page, "floor"), paged->slots.remainder(page)},
                    at::cat({key, value}, -1).squeeze(0));
    ops::Selection rows = gates.selection;
    rows.gates = rows.gates.squeeze(0);
    return ops::head_attention_paged(query.squeeze(0), pool.narrow(3, 0, dim), pool.narrow(3, dim, dim), rows,
                                     paged->sequences, paged->pages, variant)
        .unsqueeze(0);
  }
  return layers::attend_to(query, key, value, gates, variant);
}

Tensor Llama::attention(std::int64_t index, const layers::RouterSetting& setting, const Tensor& x, Pass& pass,
                        LlamaOutput& output) const {
  const Layer& layer = layers_[index];
  const LlamaInput& input = pass.input;
  auto attended = layers::moh_layer(
      layer.attention, setting, x,
      {.balance_loss = input.balance_loss, .leaf_gates = input.leaf_gates, .keep_query = input.keep_router_inputs},
      [&](layers::ProjectedHeads heads, const layers::Gates& gates) {
        Tensor outputs = attend(index, std::move(heads), gates, pass);
        if (input.keep_heads) output.heads.push_back(outputs);
        return outputs;
      });
  if (input.keep_router_inputs) output.router_inputs.push_back({x, attended.query});
  if (attended.load_balance_loss.defined()) pass.balance_losses.push_back(attended.load_balance_loss);
  if (config_.moh) output.routing.push_back(std::move(attended.routing));
  return attended.y;
}

Tensor Llama::run_layer(std::int64_t index, const layers::RouterSetting& setting, const Tensor& hidden, Pass& pass,
                        LlamaOutput& output, bool heads_only) const {
  const Layer& layer = layers_[index];
  const auto normed = [&](const Tensor& x, const optional<Tensor>& weight) {
    return weight ? rms_norm(x, *weight, config_) : x;
  };
  const auto added = [&](const Tensor& to, const Tensor& branch) {
    return config_.residual_multiplier == 1 ? to + branch : to + branch * config_.residual_multiplier;
  };
  const auto& range = pass.input.layers;
  const bool given = range && index == range->first && range->attended.defined();
  const Tensor attended =
      given ? range->attended : attention(index, setting, normed(hidden, layer.before_attention), pass, output);
  if (heads_only) return attended;
  const Tensor middle = added(hidden, normed(attended, layer.after_attention));
  const Tensor x = normed(middle, layer.before_mlp);
  return added(middle, normed(layer.down(activate(layer.gate(x), config_.activation) * layer.up(x)), layer.after_mlp));
}

// The routing comes out of the segment, whose probabilities the load-balance loss is computed from outside: once.
Tensor Llama::recomputed_layer(std::int64_t index, const layers::RouterSetting& setting, const Tensor& hidden,
                               Pass& pass, LlamaOutput& output) const {
  struct Kept {  // until the backward pass
    LlamaInput input;
    Pass pass;
    layers::RouterSetting setting;
    Json own;
    Kept(const LlamaInput& in, const Pass& of, const layers::RouterSetting& with)
        : input(in), pass{input, of.rope, of.local_rope, of.bias, {}}, setting(with) {
      input.balance_loss = false;
      if (with.own == nullptr) return;
      own = *with.own;  // which the next call may change
      setting.own = &own;
    }
  };
  const auto kept = std::make_shared<Kept>(pass.input, pass, setting);
  const auto segment = [this, index, kept](const std::vector<Tensor>& inputs) -> std::vector<Tensor> {
    LlamaOutput inside;
    Tensor after = run_layer(index, kept->setting, inputs[0], kept->pass, inside);
    if (layers_[index].router == nullptr) return {after};
    const ops::Routing& routing = inside.routing[0];
    return {after, routing.probabilities, routing.gates.detach(), routing.indices};
  };
  const bool routes = layers_[index].router != nullptr;
  auto results = layers::recomputed(segment, {hidden}, parameters_.under(layer_prefix(index)), routes ? 2 : 1);
  ops::Routing routing;
  if (routes) {
    routing = {results[2], results[3], results[1]};
    if (pass.input.balance_loss) {
      const Tensor loss = layers_[index].router->balance_loss(setting, routing);
      if (loss.defined()) pass.balance_losses.push_back(loss);
    }
  }
  if (config_.moh) output.routing.push_back(std::move(routing));
  return results[0];
}

Tensor Llama::embed(const Tensor& ids) const {
  check_ids(ids, config_.vocab_size);
  const Tensor hidden = at::embedding(embedding_, ids);
  // The factor is rounded to the weights' type first, as the family was trained.
  if (config_.embedding_scale == 1) return hidden;
  return hidden * at::scalar_tensor(config_.embedding_scale, embedding_.options().requires_grad(false));
}

Tensor Llama::final_norm(const Tensor& hidden) const { return rms_norm(hidden, final_norm_, config_); }

Tensor Llama::logits(const Tensor& hidden) const {
  Tensor logits = lm_head_(hidden);
  if (config_.logits_divisor != 1) logits = logits / config_.logits_divisor;
  if (const double cap = config_.logits_soft_cap; cap > 0) logits = at::tanh(logits / cap) * cap;
  return logits;
}

std::vector<Tensor> Llama::head_parameters() const {
  std::vector<Tensor> found;
  for (const char* name : {"lm_head.weight", "lm_head.bias"}) {
    if (const auto tensor = parameters_.find(name)) found.push_back(*tensor);
  }
  return found;
}

LlamaOutput Llama::forward(const LlamaInput& input) const {
  Tensor hidden = input.layers ? input.layers->hidden : embed(input.ids);
  const std::int64_t batch = hidden.size(0), tokens = hidden.size(1);
  const std::int64_t past = input.cache != nullptr ? input.cache->length : 0;
  MOH_CHECK(input.paged != nullptr || past + tokens <= config_.max_position_embeddings, "[llama] ", past + tokens,
            " tokens do not fit into the model's context of ", config_.max_position_embeddings);
  MOH_CHECK(input.cache == nullptr || past + tokens <= input.cache->capacity, "[llama] ", past + tokens,
            " tokens do not fit into a KV cache of ", input.cache != nullptr ? input.cache->capacity : 0);

  LlamaOutput output;
  const auto options = embedding_.options().requires_grad(false);
  const Tensor positions =
      input.position_ids ? *input.position_ids : at::arange(past, past + tokens, options.dtype(at::kLong));
  Pass pass{input, layers::rope_table(inverse_frequencies_, positions), {}, {}, {}};
  if (local_frequencies_.defined()) pass.local_rope = layers::rope_table(local_frequencies_, positions);
  if (input.attention_mask) {
    const Tensor& mask = *input.attention_mask;
    MOH_CHECK(mask.dim() == 2 && mask.size(0) == batch && mask.size(1) == past + tokens,
              "[llama] attention_mask must be [B, S] = [", batch, ", ", past + tokens, "], got ", mask.sizes());
    pass.bias = at::zeros(mask.sizes(), options)
                    .masked_fill(mask.eq(0), -std::numeric_limits<double>::infinity())
                    .unsqueeze(1)
                    .unsqueeze(1);
  }

  if (input.documents.defined()) {
    MOH_CHECK(input.documents.sizes() == at::IntArrayRef({batch, tokens}) && past == 0,
              "[llama] documents must be [B, T] = [", batch, ", ", tokens, "] without a cache, got ",
              input.documents.sizes());
    const Tensor other = input.documents.unsqueeze(2).ne(input.documents.unsqueeze(1));  // [B, T, S]
    const Tensor bias =
        at::zeros(other.sizes(), options).masked_fill(other, -std::numeric_limits<double>::infinity()).unsqueeze(1);
    pass.bias = pass.bias ? *pass.bias + bias : bias;
  }
  const std::int64_t first = input.layers ? input.layers->first : 0;
  const std::int64_t end = input.layers ? first + input.layers->count : config_.num_hidden_layers;
  MOH_CHECK(!input.recompute || (!input.layers && input.cache == nullptr && input.paged == nullptr &&
                                 !input.keep_heads && !input.keep_router_inputs && !input.leaf_gates),
            "[llama] recomputation is for training alone");
  for (std::int64_t i = first; i < end; ++i) {
    const Layer& layer = layers_[i];
    auto setting =
        config_.moh ? router_setting(config_, i, layer.order ? &*layer.order : nullptr) : layers::RouterSetting();
    setting.positions = positions;
    if (input.keep_hidden) output.hidden.push_back(hidden);
    if (input.recompute) {
      hidden = recomputed_layer(i, setting, hidden, pass, output);
      part_done(i + 1, end);
      continue;
    }
    const bool heads_only = input.layers && input.layers->heads_only && i + 1 == end;
    hidden = run_layer(i, setting, hidden, pass, output, heads_only);
    if (heads_only) {
      output.range_hidden = hidden;
      return output;
    }
    part_done(i + 1 - first, end - first);
  }
  if (input.layers) {
    output.range_hidden = hidden;
    return output;
  }
  if (input.cache != nullptr) input.cache->length += tokens;
  output.last_hidden = final_norm(hidden);
  if (!input.no_logits) {
    output.logits = logits(input.logit_rows.defined() ? output.last_hidden.index_select(1, input.logit_rows)
                           : input.last_only          ? output.last_hidden.narrow(1, tokens - 1, 1)
                                                      : output.last_hidden);
  }
  if (!pass.balance_losses.empty()) output.load_balance_loss = at::stack(pass.balance_losses).mean();
  return output;
}

}  // namespace moh::models
