// The configuration of a LLaMA-family model, dense or MoH: Hugging Face's config.json plus one object `moh`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "moh/base/fields.h"
#include "moh/layers/rope_scaling.h"
#include "moh/layers/routers/router_kind.h"

namespace moh::models {

// What config.json holds under `moh`. shared_heads and top_k count heads and have one entry per layer; in the file a
// single number stands for all layers. A layer with shared_heads + top_k == heads has every head active.
struct MohConfig {
  layers::RouterKind router = "norm";
  layers::SelectBy select = layers::SelectBy::kHead;
  std::vector<std::int64_t> shared_heads, top_k;
  // Per layer the heads in the router's order: the first shared_heads of them are shared. Empty: as they are numbered.
  std::vector<std::vector<std::int64_t>> head_order;
  double beta = 0.01;                                   // weight of the load-balance loss
  layers::GateForm gates = layers::GateForm::kPaper;    // of the two-stage router (spec, section 1)
  layers::GateForm balance = layers::GateForm::kPaper;  // the authors' load-balance loss is the paper's times E
  // Norm router; kNone as in the authors' published inference code.
  layers::StraightThrough straight_through = layers::StraightThrough::kSelected;
  Json own = Json::object();  // keys of the router's own

  // The number of heads varies by token (linear router); top_k is all routed heads then, and not in the file.
  bool by_threshold() const { return own.value("choose", "") == "threshold"; }
};

// Where a block normalises: what goes into attention and MLP, what comes out of them, or both.
enum class NormPlaces { kBefore, kAfter, kAround };
// RMSNorm over every query and key of a head, or over those of all heads as one vector; before the rotary embedding.
enum class QueryKeyNorm { kNone, kHead, kProjection };

struct LlamaConfig {
  std::string model_type = "llama";  // a row of llama_family.cpp
  std::int64_t vocab_size = 32000, hidden_size = 4096, intermediate_size = 11008;
  std::int64_t num_hidden_layers = 32, num_attention_heads = 32, num_key_value_heads = 32, head_dim = 128;
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6, rope_theta = 10000.0, initializer_range = 0.02;
  layers::RopeScaling rope_scaling;
  bool qkv_bias = false, output_bias = false, mlp_bias = false, tie_word_embeddings = false;
  QueryKeyNorm query_key_norm = QueryKeyNorm::kNone;
  NormPlaces norms = NormPlaces::kBefore;
  double norm_offset = 0.0;  // RMSNorm multiplies by weight + offset
  double embedding_scale = 1.0, residual_multiplier = 1.0, logits_divisor = 1.0;
  double attention_scale = 0.0;                            // 0: 1 / sqrt(head_dim)
  double attention_soft_cap = 0.0, logits_soft_cap = 0.0;  // x becomes cap * tanh(x / cap); 0: x
  std::int64_t rotary_dim = 0;             // leading dimensions of a head that the rotary embedding turns; 0: all
  double rope_local_theta = 0.0;           // of the layers with a window, unscaled; 0: as the others
  bool fused_projections = false;          // tensors qkv_proj and gate_up_proj instead of their parts
  std::string activation = "silu";         // silu, gelu or gelu_pytorch_tanh
  std::vector<std::int64_t> windows = {};  // per layer: tokens that a token sees, itself included; 0: all. Empty: all 0
  std::vector<bool> rope_layers = {};      // per layer: has a rotary embedding. Empty: all have
  std::int64_t bos_token_id = -1;          // -1: none
  std::vector<std::int64_t> eos_token_id;  // any number
  std::optional<MohConfig> moh;
  Json source = Json::object();  // config.json as read, so that saving keeps keys that this code does not know

  std::int64_t shared_heads(std::int64_t layer) const { return moh ? moh->shared_heads[layer] : num_attention_heads; }
  std::int64_t top_k(std::int64_t layer) const { return moh ? moh->top_k[layer] : 0; }
  bool is_shared(std::int64_t layer, std::int64_t head) const;
  // "4 shared + 2 of 5 routed", "0 shared + 9 routed by threshold"
  std::string heads_text(std::int64_t layer) const;
  // Heads that the router takes or leaves together.
  std::int64_t heads_per_choice() const {
    return moh && moh->select == layers::SelectBy::kKvGroup ? num_attention_heads / num_key_value_heads : 1;
  }
  std::int64_t window(std::int64_t layer) const { return windows.empty() ? 0 : windows[layer]; }
  bool has_rope(std::int64_t layer) const { return rope_layers.empty() || rope_layers[layer]; }
  std::int64_t rotary_size() const { return rotary_dim > 0 ? rotary_dim : head_dim; }
  // (shared + K) / heads over all layers, by threshold what calibration text used; 1 for a dense model.
  double activated_share() const;
};

// What a LLaMA folder is whose config.json has no object `moh`. The authors' MoH-LLaMA3 folder says nothing of MoH:
// their modeling file fixes router norm with h/2 shared heads and K = h/4 (spec, section 1).
enum class ReadAs {
  kAuto,     // the authors' if `auto_map` names their modeling file; dense without `auto_map`; else an error
  kDense,    // --read-as dense
  kMohLlama  // --read-as moh-llama
};
ReadAs read_as(const std::string& name);  // "auto", "dense", "moh-llama"

// Reads and checks config.json as transformers 4 and 5 write it, or as `moh convert --export hf` does; `where` names it
// in errors.
LlamaConfig parse_llama_config(const Json& json, const std::string& where, ReadAs as = ReadAs::kAuto);
// The file as it was read but for what differs now; for a new model, every key of its family.
Json llama_config_json(const LlamaConfig& config);

// Checks sizes and the moh object against the model; throws Error naming the key.
void check_llama_config(const LlamaConfig& config, const std::string& where);

// Shared heads and K, the same for every layer: round(activated * heads) are active. Of these `top_k` are routed if
// given; else all but round(shared_share * heads) if that is given; else a quarter of all heads, at most half of the
// active ones: 1/2 + 1/4 of the heads at 75 %, 1/4 + 1/4 at 50 % (the paper gives no division for language models and
// advises that at least 40 % of the active heads be shared). Heads are chosen in groups of heads_per_choice, and so all
// counts are rounded to multiples of it. Errors: shares out of range.
MohConfig make_moh_config(std::int64_t num_layers, std::int64_t num_heads, double activated,
                          std::optional<double> shared_share, std::optional<std::int64_t> top_k,
                          layers::RouterKind router, std::int64_t heads_per_choice = 1);

// Presets: moh-llm-s, moh-llm-b (paper, table 3 and appendix), moh-llm-tiny, moh-llm-mini and their dense twins without
// `moh-`.
std::vector<std::string> llama_presets();
LlamaConfig llama_preset(const std::string& name);

}  // namespace moh::models
