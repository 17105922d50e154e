// config.json of the families: what the file says, what it leaves to the family, what cannot be read, and whose MoH it
// is.
#include "moh/models/llama_config.h"

#include <gtest/gtest.h>

#include "moh/base/error.h"
#include "moh/models/llama_family.h"
#include "tests/base/error_of.h"

namespace {

using moh::Json;
using moh::test::error_of;
using namespace moh::models;

Json small(const std::string& model_type) {
  return {{"model_type", model_type}, {"vocab_size", 96},         {"hidden_size", 64},        {"intermediate_size", 80},
          {"num_hidden_layers", 4},   {"num_attention_heads", 8}, {"num_key_value_heads", 4}, {"rms_norm_eps", 1e-6}};
}

Json with(Json json, const Json& more) {
  json.merge_patch(more);
  return json;
}

LlamaConfig parse(const Json& json, ReadAs as = ReadAs::kAuto) { return parse_llama_config(json, "config.json", as); }

std::string error_of_config(const Json& json, ReadAs as = ReadAs::kAuto) {
  return error_of([&] { parse(json, as); });
}

using Layers = std::vector<std::int64_t>;

TEST(LlamaFamilies, FixWhatTheFileDoesNotSay) {
  const LlamaConfig gemma = parse(small("gemma"));
  EXPECT_EQ(gemma.activation, "gelu_pytorch_tanh");
  EXPECT_EQ(gemma.norm_offset, 1);
  EXPECT_EQ(gemma.embedding_scale, 8);
  EXPECT_TRUE(gemma.tie_word_embeddings);
  EXPECT_EQ(gemma.head_dim, 256);
  // Gemma's first files: `gelu` means the approximation; a later key overrules.
  Json first = small("gemma");
  first["hidden_act"] = "gelu";
  first["hidden_activation"] = nullptr;
  EXPECT_EQ(parse(first).activation, "gelu_pytorch_tanh");
  first["hidden_activation"] = "silu";
  EXPECT_EQ(parse(first).activation, "silu");
  EXPECT_EQ(parse(with(small("llama"), {{"hidden_act", "gelu"}})).activation, "gelu");

  const LlamaConfig qwen2 = parse(small("qwen2"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.output_bias);
  EXPECT_EQ(qwen2.query_key_norm, QueryKeyNorm::kNone);
  EXPECT_EQ(qwen2.head_dim, 8);
  const LlamaConfig qwen3 = parse(small("qwen3"));
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_EQ(qwen3.query_key_norm, QueryKeyNorm::kHead);
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_TRUE(parse(with(small("qwen3"), {{"attention_bias", true}})).output_bias);
  EXPECT_TRUE(parse(with(small("llama"), {{"mlp_bias", true}})).mlp_bias);
  EXPECT_FALSE(parse(with(small("mistral"), {{"attention_bias", true}})).qkv_bias);

  Json silent = small("mistral");
  silent.erase("num_key_value_heads");
  EXPECT_EQ(parse(silent).num_key_value_heads, 8);
  silent["num_key_value_heads"] = nullptr;
  EXPECT_EQ(parse(silent).num_key_value_heads, 8);  // one for each of the 8 heads
  silent["model_type"] = "llama";
  EXPECT_EQ(parse(silent).num_key_value_heads, 8);
}

TEST(LlamaFamilies, SlidingWindowsFollowEachFamilysRule) {
  EXPECT_EQ(parse(with(small("mistral"), {{"sliding_window", 9}})).windows, (Layers{9, 9, 9, 9}));
  EXPECT_EQ(parse(small("mistral")).windows, (Layers{4096, 4096, 4096, 4096}));
  Json json = small("mistral");
  json["sliding_window"] = nullptr;
  EXPECT_EQ(parse(json).windows, (Layers{0, 0, 0, 0}));
  EXPECT_TRUE(parse(with(small("llama"), {{"sliding_window", 9}})).windows.empty());
  for (const std::string type : {"qwen2", "qwen3"}) {
    const Json sized = with(small(type), {{"sliding_window", 9}, {"max_window_layers", 3}});
    EXPECT_EQ(parse(sized).windows, (Layers{0, 0, 0, 0})) << "not used unless use_sliding_window";
    const Json used = with(sized, {{"use_sliding_window", true}});
    EXPECT_EQ(parse(used).windows, (Layers{0, 0, 0, 9}));
    const Json typed =
        with(used, {{"layer_types", {"sliding_attention", "full_attention", "sliding_attention", "full_attention"}}});
    EXPECT_EQ(parse(typed).windows, (Layers{9, 0, 9, 0})) << "layer_types overrule max_window_layers";
    EXPECT_NE(error_of_config(with(typed, {{"use_sliding_window", false}})).find("sliding_window"), std::string::npos);
    EXPECT_NE(error_of_config(with(used, {{"layer_types", {"full_attention"}}})).find("layer_types"),
              std::string::npos);
    EXPECT_NE(error_of_config(with(typed, {{"layer_types", {"linear", "linear", "linear", "linear"}}})).find("linear"),
              std::string::npos);
  }
  const LlamaConfig nope = parse(with(small("smollm3"), {{"use_sliding_window", true}, {"sliding_window", 9}}));
  EXPECT_EQ(nope.rope_layers, (std::vector<bool>{true, true, true, false}));
  EXPECT_EQ(nope.windows, (Layers{0, 0, 0, 9}));
  EXPECT_NE(error_of_config(with(small("mistral"), {{"sliding_window", -1}})).find("sliding_window"),
            std::string::npos);
}

TEST(LlamaFamilies, ReadRopeAndTokensInOldAndNewForm) {
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const LlamaConfig old = parse(with(small("llama"), {{"rope_theta", 5e5}, {"rope_scaling", llama3}}));
  const LlamaConfig now = parse(with(small("llama"), {{"rope_parameters", with(llama3, {{"rope_theta", 5e5}})}}));
  for (const auto& config : {old, now}) {
    EXPECT_EQ(config.rope_theta, 5e5);
    EXPECT_EQ(config.rope_scaling.type, "llama3");
    EXPECT_EQ(config.rope_scaling.factor, 8);
    EXPECT_EQ(config.rope_scaling.original_max_position_embeddings, 8192);
  }
  EXPECT_EQ(parse(with(small("llama"), {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}})).rope_scaling.factor,
            2);
  EXPECT_EQ(parse(small("smollm3")).rope_theta, 2e6);
  EXPECT_EQ(parse(with(small("llama"), {{"eos_token_id", {7, 9}}})).eos_token_id, (Layers{7, 9}));
  EXPECT_EQ(parse(with(small("llama"), {{"eos_token_id", 7}})).eos_token_id, (Layers{7}));
}

TEST(LlamaFamilies, RefuseWhatTheyCannotCompute) {
  const auto says = [](const Json& more, const char* words, const std::string& type = "llama") {
    const std::string error = error_of_config(with(small(type), more));
    EXPECT_NE(error.find(words), std::string::npos) << more << " gave: " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos);
  };
  says({{"model_type", "mamba"}}, "supported: llama, mistral, qwen2, qwen3, gemma, smollm3");
  says({{"quantization_config", {{"bits", 4}}}}, "quantised");
  says({{"hidden_act", "relu"}}, "relu");
  for (const char* type : {"yarn", "dynamic", "longrope"}) {
    says({{"rope_parameters", {{"rope_type", type}, {"factor", 2.0}}}}, type);
    says({{"rope_scaling", {{"type", type}, {"factor", 2.0}}}}, type);
  }
  says({{"rope_parameters", {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}}}}}}, "`full_attention`");
  says({{"rope_parameters", {{"rope_type", "llama3"}, {"factor", 8.0}}}}, "low_freq_factor");
  says({{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}}, "partial_rotary_factor");
  says({{"use_bidirectional_attention", true}}, "use_bidirectional_attention", "gemma");
  says({{"eos_token_id", {1, "two"}}}, "eos_token_id");
  says({{"hidden_size", 64.5}}, "hidden_size");
  says({{"num_hidden_layers", 1 << 30}}, "num_hidden_layers");
  says({{"no_rope_layers", {1, 0}}}, "no_rope_layers", "smollm3");
}

TEST(LlamaConfigJson, ComesBackAsItWasReadAndWritesEveryFamilyAnew) {
  for (const std::string type : {"llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3"}) {
    ASSERT_NE(find_llama_family(type), nullptr);
    Json json = with(small(type), {{"use_sliding_window", true}, {"sliding_window", 9}, {"max_window_layers", 2}});
    json["a_key_of_tomorrow"] = {1, 2};
    LlamaConfig config = parse(json);
    EXPECT_EQ(llama_config_json(config), json) << type;
    config.vocab_size = 100;
    EXPECT_EQ(llama_config_json(config), with(json, {{"vocab_size", 100}})) << type;
    // Without the file it came from, the same model is described by keys alone.
    config.source = Json::object();
    const LlamaConfig again = parse(llama_config_json(config));
    EXPECT_EQ(again.windows, config.windows) << type;
    EXPECT_EQ(again.rope_layers, config.rope_layers) << type;
    EXPECT_EQ(again.activation, config.activation) << type;
    EXPECT_EQ(again.head_dim, config.head_dim) << type;
    EXPECT_EQ(again.tie_word_embeddings, config.tie_word_embeddings) << type;
    EXPECT_EQ(again.num_key_value_heads, config.num_key_value_heads) << type;
  }
}

TEST(MohLlamaOfTheAuthors, IsRecognisedByItsCodeOrDeclared) {
  const Json plain = small("llama");
  const auto code = [&](const char* name) { return with(plain, {{"auto_map", {{"AutoModelForCausalLM", name}}}}); };
  const auto is_theirs = [](const LlamaConfig& config) {
    return config.moh && config.moh->router == "norm" && config.moh->shared_heads == Layers{4, 4, 4, 4} &&
           config.moh->top_k == Layers{2, 2, 2, 2};
  };
  EXPECT_FALSE(parse(plain).moh);
  EXPECT_TRUE(is_theirs(parse(code("modeling_llama.LlamaForCausalLM"))));
  EXPECT_TRUE(is_theirs(parse(code("someone/MoH-LLaMA3-8B--modeling_llama.LlamaForCausalLM"))));
  EXPECT_TRUE(is_theirs(parse(plain, ReadAs::kMohLlama)));
  EXPECT_FALSE(parse(code("modeling_llama.LlamaForCausalLM"), ReadAs::kDense).moh);
  const std::string error = error_of_config(code("modeling_other.OtherForCausalLM"));
  EXPECT_NE(error.find("--read-as"), std::string::npos) << error;
  EXPECT_TRUE(is_theirs(parse(code("modeling_other.OtherForCausalLM"), ReadAs::kMohLlama)));
  EXPECT_FALSE(parse(code("modeling_other.OtherForCausalLM"), ReadAs::kDense).moh);
  EXPECT_NE(error_of_config(small("qwen2"), ReadAs::kMohLlama).find("llama"), std::string::npos);
  // Once known, the folder says so itself and names no code.
  for (const auto& config : {parse(code("modeling_llama.LlamaForCausalLM")),
                             parse(code("modeling_other.OtherForCausalLM"), ReadAs::kMohLlama)}) {
    const Json written = llama_config_json(config);
    EXPECT_FALSE(written.contains("auto_map"));
    EXPECT_TRUE(is_theirs(parse(written)));
  }
  EXPECT_FALSE(llama_config_json(parse(code("modeling_other.OtherForCausalLM"), ReadAs::kDense)).contains("auto_map"));
  EXPECT_NE(error_of_config(llama_config_json(parse(plain, ReadAs::kMohLlama)), ReadAs::kDense).find("moh"),
            std::string::npos);
}

}  // namespace
