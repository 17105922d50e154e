// The families of models that share LLaMA's layout and tensor names. Each is one row of a table: what transformers'
// configuration class of that family fixes, or assumes where config.json is silent. Everything else is read from the
// file; the model itself (llama.cpp) knows no family, only the fields of LlamaConfig.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moh/models/llama_config.h"

namespace moh::models {

enum class Bias { kNever, kAlways, kByKey };  // kByKey: `attention_bias`, `mlp_bias`

// Which layers see only the last `sliding_window` tokens.
enum class WindowRule {
  kNone,
  kEveryLayer,   // all, unless `sliding_window` is null
  kUpperLayers,  // with `use_sliding_window`: `layer_types`, else the layers from `max_window_layers` on
  kNopeLayers,   // with `use_sliding_window`: `layer_types`, else the layers without rotary embedding
  kPattern       // `layer_types`, else all but every `sliding_window_pattern`-th layer
};

// The defaults are LLaMA's own.
struct LlamaFamily {
  const char* model_type;
  const char* architecture;            // transformers' class
  const char* config_class = nullptr;  // of it; nullptr: architecture with Config in place of ForCausalLM
  // Where config.json is silent:
  std::int64_t max_position_embeddings = 2048;
  std::int64_t num_key_value_heads = 0;           // 0: one for each head
  std::int64_t head_dim = 0;                      // 0: hidden_size / num_attention_heads
  double rope_theta = 1e4, rope_local_theta = 0;  // the second: of layers with a window; 0: the same
  double rms_norm_eps = 1e-6;
  const char* activation = "silu";
  bool tie_word_embeddings = false;
  // What the family fixes:
  Bias qkv_bias = Bias::kByKey, output_bias = Bias::kByKey, mlp_bias = Bias::kNever;
  QueryKeyNorm query_key_norm = QueryKeyNorm::kNone;
  NormPlaces norms = NormPlaces::kBefore;
  bool fused_projections = false;
  bool scaled_embedding = false;  // embeddings times sqrt(hidden_size)
  double norm_offset = 0;         // RMSNorm multiplies by weight + offset
  WindowRule window = WindowRule::kNone;
  std::int64_t sliding_window = 0, max_window_layers = 0;  // where the file is silent; 0: no window
  std::int64_t window_pattern = 0;                         // likewise
  std::int64_t nope_interval = 0;  // every so many layers have no rotary embedding (`no_rope_layers`); 0: all have one
  bool partial_rotary = false;     // reads `partial_rotary_factor`
  bool multipliers = false;        // reads Granite's four: embedding, attention, residual, logits
  double query_scalar = 0;         // `query_pre_attn_scalar`, whose inverse root scales attention; 0: has no such key
  double attention_soft_cap = 0, logits_soft_cap = 0;  // where the file is silent; keys read with query_scalar
};

// nullptr: not a family of the table.
const LlamaFamily* find_llama_family(const std::string& model_type);
std::string llama_family_names();  // "llama, mistral, ..."

}  // namespace moh::models
