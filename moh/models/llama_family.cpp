#include "moh/models/llama_family.h"

namespace moh::models {
namespace {

constexpr LlamaFamily kFamilies[] = {
    // LLaMA 1 to 3.2, SmolLM 1 and 2, and whatever else names itself so.
    {.model_type = "llama", .architecture = "LlamaForCausalLM", .mlp_bias = Bias::kByKey},
    {.model_type = "mistral",
     .architecture = "MistralForCausalLM",
     .max_position_embeddings = 131072,
     .num_key_value_heads = 8,
     .qkv_bias = Bias::kNever,
     .output_bias = Bias::kNever,
     .window = WindowRule::kEveryLayer,
     .sliding_window = 4096},
    {.model_type = "qwen2",  // and Qwen 2.5
     .architecture = "Qwen2ForCausalLM",
     .max_position_embeddings = 32768,
     .num_key_value_heads = 32,
     .qkv_bias = Bias::kAlways,
     .output_bias = Bias::kNever,
     .window = WindowRule::kUpperLayers,
     .sliding_window = 4096,
     .max_window_layers = 28},
    {.model_type = "qwen3",
     .architecture = "Qwen3ForCausalLM",
     .max_position_embeddings = 32768,
     .num_key_value_heads = 32,
     .head_dim = 128,
     .query_key_norm = QueryKeyNorm::kHead,
     .window = WindowRule::kUpperLayers,
     .sliding_window = 4096,
     .max_window_layers = 28},
    {.model_type = "gemma",
     .architecture = "GemmaForCausalLM",
     .max_position_embeddings = 8192,
     .num_key_value_heads = 16,
     .head_dim = 256,
     .activation = "gelu_pytorch_tanh",
     .tie_word_embeddings = true,
     .scaled_embedding = true,
     .norm_offset = 1},
    {.model_type = "smollm3",
     .architecture = "SmolLM3ForCausalLM",
     .max_position_embeddings = 32768,
     .num_key_value_heads = 4,
     .rope_theta = 2e6,
     .tie_word_embeddings = true,
     .mlp_bias = Bias::kByKey,
     .window = WindowRule::kNopeLayers,
     .nope_interval = 4},
    {.model_type = "gemma2",
     .architecture = "Gemma2ForCausalLM",
     .max_position_embeddings = 8192,
     .num_key_value_heads = 4,
     .head_dim = 256,
     .activation = "gelu_pytorch_tanh",
     .tie_word_embeddings = true,
     .norms = NormPlaces::kAround,
     .scaled_embedding = true,
     .norm_offset = 1,
     .window = WindowRule::kPattern,
     .sliding_window = 4096,
     .window_pattern = 2,
     .query_scalar = 256,
     .attention_soft_cap = 50,
     .logits_soft_cap = 30},
    {.model_type = "gemma3_text",
     .architecture = "Gemma3ForCausalLM",
     .config_class = "Gemma3TextConfig",
     .max_position_embeddings = 131072,
     .num_key_value_heads = 4,
     .head_dim = 256,
     .rope_theta = 1e6,
     .rope_local_theta = 1e4,
     .activation = "gelu_pytorch_tanh",
     .tie_word_embeddings = true,
     .query_key_norm = QueryKeyNorm::kHead,
     .norms = NormPlaces::kAround,
     .scaled_embedding = true,
     .norm_offset = 1,
     .window = WindowRule::kPattern,
     .sliding_window = 4096,
     .window_pattern = 6,
     .query_scalar = 256},
    {.model_type = "phi3",
     .architecture = "Phi3ForCausalLM",
     .max_position_embeddings = 4096,
     .rms_norm_eps = 1e-5,
     .qkv_bias = Bias::kNever,
     .output_bias = Bias::kNever,
     .fused_projections = true,
     .window = WindowRule::kEveryLayer,
     .partial_rotary = true},
    {.model_type = "olmo2",
     .architecture = "Olmo2ForCausalLM",
     .rms_norm_eps = 1e-5,
     .query_key_norm = QueryKeyNorm::kProjection,
     .norms = NormPlaces::kAfter},
    {.model_type = "granite", .architecture = "GraniteForCausalLM", .mlp_bias = Bias::kByKey, .multipliers = true},
};

}  // namespace

const LlamaFamily* find_llama_family(const std::string& model_type) {
  for (const LlamaFamily& family : kFamilies) {
    if (model_type == family.model_type) return &family;
  }
  return nullptr;
}

std::string llama_family_names() {
  std::string names;
  for (const LlamaFamily& family : kFamilies) names += (names.empty() ? "" : ", ") + std::string(family.model_type);
  return names;
}

}  // namespace moh::models
