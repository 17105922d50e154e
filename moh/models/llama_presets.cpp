// Named language models. moh-llm-s and moh-llm-b are the paper's (appendix, model configurations); the small ones are
// for trials and for the demo.
#include "moh/base/error.h"
#include "moh/models/llama_config.h"

namespace moh::models {
namespace {

struct Size {
  const char* name;
  std::int64_t vocabulary, layers, hidden, intermediate, heads, kv_heads, head_dim, positions;
};

constexpr Size kSizes[] = {
    {"llm-tiny", 512, 4, 128, 384, 8, 8, 16, 512},    // about a million parameters
    {"llm-mini", 4096, 6, 256, 704, 8, 8, 32, 1024},  // about seven million
    {"llm-s", 65536, 12, 768, 2048, 12, 12, 64, 2048},
    {"llm-b", 65536, 24, 1536, 4096, 16, 16, 96, 2048},
};

}  // namespace

std::vector<std::string> llama_presets() {
  std::vector<std::string> names;
  for (const Size& size : kSizes) {
    names.push_back(std::string("moh-") + size.name);
    names.emplace_back(size.name);
  }
  return names;
}

LlamaConfig llama_preset(const std::string& name) {
  for (const Size& size : kSizes) {
    const bool is_moh = name == std::string("moh-") + size.name;
    if (!is_moh && name != size.name) continue;
    LlamaConfig config;
    config.vocab_size = size.vocabulary;
    config.num_hidden_layers = size.layers;
    config.hidden_size = size.hidden;
    config.intermediate_size = size.intermediate;
    config.num_attention_heads = size.heads;
    config.num_key_value_heads = size.kv_heads;
    config.head_dim = size.head_dim;
    config.max_position_embeddings = size.positions;
    config.rms_norm_eps = 1e-5;
    config.bos_token_id = 1;
    config.eos_token_id = {2};
    if (is_moh) {
      config.moh = make_moh_config(size.layers, size.heads, 0.75, std::nullopt, std::nullopt, "two-stage");
    }
    return config;
  }
  std::string known;
  for (const std::string& preset : llama_presets()) known += (known.empty() ? "" : ", ") + preset;
  fail("[preset] unknown preset `", name, "`; known: ", known);
}

}  // namespace moh::models
