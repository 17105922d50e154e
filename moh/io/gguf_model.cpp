#include "moh/io/gguf_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/io/name_text.h"

namespace moh::io {
namespace {

constexpr double kReported = 64 << 20;  // bytes

// An architecture of llama.cpp and the model_type of transformers that it stands for.
struct Architecture {
  const char *name, *model_type, *transformers;
  // llama.cpp turns neighbouring numbers of a query or key where transformers turns those half a head apart: for these
  // its converter reorders the rows of q and k.
  bool reordered = false;
  double norm_offset = 0;     // added to every norm's weight by the converter
  bool norms_around = false;  // norms after attention and MLP too, or there alone
  bool fused = false;         // the MLP's gate and up projection are one matrix
  bool multipliers = false;   // of embedding, attention, residual, logits
  // Gemma 2 and 3: queries are scaled by the head size, but in the model of so many layers by hidden size / heads.
  std::int64_t scaled_by_width = 0;
};
constexpr Architecture kArchitectures[] = {
    {.name = "llama", .model_type = "llama", .transformers = "LlamaForCausalLM", .reordered = true},
    {.name = "smollm3", .model_type = "smollm3", .transformers = "SmolLM3ForCausalLM", .reordered = true},
    {.name = "qwen2", .model_type = "qwen2", .transformers = "Qwen2ForCausalLM"},
    {.name = "qwen3", .model_type = "qwen3", .transformers = "Qwen3ForCausalLM"},
    {.name = "gemma", .model_type = "gemma", .transformers = "GemmaForCausalLM", .norm_offset = 1},
    {.name = "gemma2",
     .model_type = "gemma2",
     .transformers = "Gemma2ForCausalLM",
     .norm_offset = 1,
     .norms_around = true,
     .scaled_by_width = 46},
    {.name = "gemma3",
     .model_type = "gemma3_text",
     .transformers = "Gemma3ForCausalLM",
     .norm_offset = 1,
     .norms_around = true,
     .scaled_by_width = 62},
    {.name = "phi3", .model_type = "phi3", .transformers = "Phi3ForCausalLM", .fused = true},
    {.name = "olmo2", .model_type = "olmo2", .transformers = "Olmo2ForCausalLM", .norms_around = true},
    {.name = "granite",
     .model_type = "granite",
     .transformers = "GraniteForCausalLM",
     .reordered = true,
     .multipliers = true},
};

const Architecture& architecture_of(const GgufFile& file) {
  const auto name = file.text("general.architecture");
  MOH_CHECK(name, "[gguf] ", file.path(), ": `general.architecture` is missing");
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (*name == architecture.name) return architecture;
    known += (known.empty() ? "" : ", ") + std::string(architecture.name);
  }
  fail("[gguf] ", file.path(), ": architecture ", name_text(*name), " is not supported; supported: ", known);
}

// Names of llama.cpp and of transformers, without `.weight` and `.bias`.
constexpr std::pair<std::string_view, std::string_view> kModelNames[] = {
    {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};
constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},      {"attn_qkv", "self_attn.qkv_proj"},  {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},           {"ffn_down", "mlp.down_proj"}};
constexpr std::pair<std::string_view, std::string_view> kNormsAround[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"}};

std::string_view layer_name(const Architecture& architecture, std::string_view stem) {
  if (architecture.norms_around) {
    for (const auto& [ours, theirs] : kNormsAround) {
      if (stem == ours) return theirs;
    }
  }
  if (architecture.fused && stem == "ffn_up") return "mlp.gate_up_proj";
  for (const auto& [ours, theirs] : kLayerNames) {
    if (stem == ours) return theirs;
  }
  return {};
}

// Unknown names stay, and the model says that it has no place for them.
std::string transformers_name(const Architecture& architecture, const std::string& name) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string::npos) return name;
  const std::string_view stem = std::string_view(name).substr(0, dot), suffix = std::string_view(name).substr(dot);
  for (const auto& [ours, theirs] : kModelNames) {
    if (stem == ours) return std::string(theirs) + std::string(suffix);
  }
  if (!stem.starts_with("blk.")) return name;
  const std::size_t end = stem.find('.', 4);
  if (end == std::string_view::npos) return name;
  const std::string_view theirs = layer_name(architecture, stem.substr(end + 1));
  if (theirs.empty()) return name;
  return "model.layers." + std::string(stem.substr(4, end - 4)) + "." + std::string(theirs) + std::string(suffix);
}

bool is_rope_factors(const std::string& name) { return name == "rope_freqs.weight"; }

// ---- Metadata

class Metadata {
 public:
  Metadata(const GgufFile& file, const Architecture& architecture)
      : file_(file), prefix_(std::string(architecture.name) + ".") {}

  // A number of the model; where the file has one for each layer they must be equal, 0 standing for none.
  std::optional<std::int64_t> integer(const std::string& name) const {
    const std::string key = prefix_ + name;
    if (!file_.is_list(key)) return file_.integer(key);
    const auto values = file_.integers(key);
    MOH_CHECK(!values.empty() && std::all_of(values.begin(), values.end(), [&](auto v) { return v == values[0]; }),
              "[gguf] ", file_.path(), ": `", key, "` differs from layer to layer, which is not supported");
    return values[0];
  }
  std::int64_t needed(const std::string& name) const {
    const auto value = integer(name);
    MOH_CHECK(value, "[gguf] ", file_.path(), ": `", prefix_, name, "` is missing");
    return *value;
  }
  std::optional<double> number(const std::string& name) const { return file_.number(prefix_ + name); }
  std::optional<std::string_view> text(const std::string& name) const { return file_.text(prefix_ + name); }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

// By what each frequency is divided under Llama 3.1's rule; long waves by `factor`, short ones not at all.
double llama3_divisor(double frequency, double factor, double low, double high, double original) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < original / high) return 1;
  if (wavelength > original / low) return factor;
  const double smooth = (original / wavelength - low) / (high - low);
  return 1 / ((1 - smooth) / factor + smooth);
}

// Llama 3.1 and later: the file has only the divisors of the frequencies, config.json the rule that gives them. All
// published models have low 1, high 4 and 8,192 tokens.
Json rope_rule(const GgufFile& file, const GgufTensor& tensor, double theta, std::int64_t rotated) {
  MOH_CHECK(tensor.type->decode != nullptr && tensor.shape == std::vector<std::int64_t>{rotated / 2}, "[gguf] ",
            file.path(), ": `rope_freqs.weight` must be ", rotated / 2, " numbers");
  std::vector<float> divisors(tensor.shape[0]);
  dequantize(*tensor.type, tensor.bytes, divisors.data());
  const double factor = *std::max_element(divisors.begin(), divisors.end());
  constexpr double kLow = 1, kHigh = 4, kOriginal = 8192;
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotated));
    const double wanted = llama3_divisor(frequency, factor, kLow, kHigh, kOriginal);
    MOH_CHECK(std::abs(divisors[i] - wanted) <= 1e-3 * wanted, "[gguf] ", file.path(), ": `rope_freqs.weight` number ",
              i, " is ", divisors[i], ", by Llama 3's rule with a factor of ", factor, " it would be ", wanted,
              "; other rules are not supported");
  }
  if (factor == 1) return nullptr;
  return {{"rope_type", "llama3"},
          {"factor", factor},
          {"low_freq_factor", kLow},
          {"high_freq_factor", kHigh},
          {"original_max_position_embeddings", static_cast<std::int64_t>(kOriginal)}};
}

// 1e-5 was written as a float, 9.999999747378752e-06; the shortest number that gives the same float is what was meant.
double shortest(double value) {
  const auto single = static_cast<float>(value);
  for (int digits = 1; digits < 9; ++digits) {
    char text[32];
    std::snprintf(text, sizeof text, "%.*e", digits - 1, value);
    if (std::strtof(text, nullptr) == single) return std::strtod(text, nullptr);
  }
  return value;
}

void add_tokens(const GgufFile& file, Json& config) {
  if (const auto bos = file.integer("tokenizer.ggml.bos_token_id")) config["bos_token_id"] = *bos;
  Json ends = Json::array();
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const auto id = file.integer(key);
    if (id && std::find(ends.begin(), ends.end(), *id) == ends.end()) ends.push_back(*id);
  }
  if (!ends.empty()) config["eos_token_id"] = ends.size() == 1 ? ends[0] : ends;
  if (const auto pad = file.integer("tokenizer.ggml.padding_token_id")) config["pad_token_id"] = *pad;
}

// What some architectures say beside the common keys.
void add_own(const Architecture& architecture, const Metadata& metadata, Json& config) {
  if (architecture.scaled_by_width > 0) {
    const std::int64_t width =
        config["hidden_size"].get<std::int64_t>() / config["num_attention_heads"].get<std::int64_t>();
    const bool is_wide = config["num_hidden_layers"] == architecture.scaled_by_width;
    config["query_pre_attn_scalar"] = is_wide ? Json(width) : config["head_dim"];
    for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
      if (const auto cap = metadata.number(key)) config[key] = shortest(*cap);
    }
    if (const auto theta = metadata.number("rope.freq_base_swa")) config["rope_local_base_freq"] = shortest(*theta);
  }
  if (architecture.multipliers) {
    constexpr std::pair<const char*, const char*> kMultipliers[] = {{"embedding_scale", "embedding_multiplier"},
                                                                    {"attention.scale", "attention_multiplier"},
                                                                    {"residual_scale", "residual_multiplier"},
                                                                    {"logit_scale", "logits_scaling"}};
    for (const auto& [ours, theirs] : kMultipliers) {
      if (const auto value = metadata.number(ours)) config[theirs] = shortest(*value);
    }
  }
}

// ---- Tensors

at::Tensor dequantized(const GgufTensor& tensor, at::ScalarType dtype) {
  at::Tensor result = at::empty(tensor.shape, at::TensorOptions(dtype));
  const std::int64_t blocks = static_cast<std::int64_t>(tensor.bytes.size()) / tensor.type->bytes;
  const std::int64_t values = tensor.type->values;
  const at::Tensor flat = result.view({-1});
  constexpr std::int64_t kNumbersAtOnce = 1 << 15;
  at::parallel_for(0, blocks, kNumbersAtOnce / values, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> numbers;
    for (std::int64_t at = begin; at < end; at += kNumbersAtOnce / values) {
      const std::int64_t count = std::min(end - at, kNumbersAtOnce / values);
      const auto part = tensor.bytes.subspan(at * tensor.type->bytes, count * tensor.type->bytes);
      if (dtype == at::kFloat) {
        dequantize(*tensor.type, part, flat.mutable_data_ptr<float>() + at * values);
        continue;
      }
      numbers.resize(count * values);
      dequantize(*tensor.type, part, numbers.data());
      flat.narrow(0, at * values, count * values).copy_(at::from_blob(numbers.data(), {count * values}, at::kFloat));
    }
  });
  return result;
}

// Rows of a head in llama.cpp's order, first and second number of each pair, to transformers': all first, then all
// second.
at::Tensor in_halves(const at::Tensor& rows, std::int64_t heads) {
  return rows.unflatten(0, {heads, -1, 2}).transpose(1, 2).reshape(rows.sizes());
}

struct Loader {
  const Architecture& architecture;
  std::int64_t heads, kv_heads;
  at::ScalarType dtype;

  at::Tensor load(const std::shared_ptr<GgufFile>& file, const GgufTensor& tensor, const std::string& name) const {
    MOH_CHECK(tensor.type->decode != nullptr, "[gguf] ", file->path(), ": tensor ", name_text(tensor.name),
              " is of type ", tensor.type->name,
              ", which is not read; take a file of type F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q4_0 or the like");
    const bool is_norm = architecture.norm_offset != 0 && name.ends_with("norm.weight");
    if (const std::int64_t count = reordered_heads(*file, tensor, name); count > 0) {
      at::Tensor result = in_halves(dequantized(tensor, dtype), count);
      drop_pages(tensor.bytes);
      return result;
    }
    if (is_norm) return (dequantized(tensor, at::kFloat) - architecture.norm_offset).to(dtype);
    if (is_stored_as(*tensor.type) && !tensor.bytes.empty()) {
      return at::from_blob(
          const_cast<std::byte*>(tensor.bytes.data()), tensor.shape, [file](void*) {}, at::TensorOptions(dtype));
    }
    at::Tensor result = dequantized(tensor, dtype);
    drop_pages(tensor.bytes);
    return result;
  }

  // How many heads' rows are in llama.cpp's order; 0: the tensor's rows are in transformers'.
  std::int64_t reordered_heads(const GgufFile& file, const GgufTensor& tensor, const std::string& name) const {
    const bool is_query = name.find(".self_attn.q_proj.") != std::string::npos;
    const bool is_key = name.find(".self_attn.k_proj.") != std::string::npos;
    if (!architecture.reordered || !(is_query || is_key)) return 0;
    const std::int64_t count = is_query ? heads : kv_heads, rows = tensor.shape[0];
    MOH_CHECK(count > 0 && rows % (2 * count) == 0, "[gguf] ", file.path(), ": tensor ", name_text(tensor.name),
              " has ", rows, " rows, which ", count, " heads cannot share");
    return count;
  }

  bool is_stored_as(const BlockType& type) const {
    const std::string_view name = type.name;
    return (dtype == at::kFloat && name == "F32") || (dtype == at::kHalf && name == "F16") ||
           (dtype == at::kBFloat16 && name == "BF16");
  }
};

}  // namespace

GgufModel::GgufModel(const std::string& path) {
  for (const std::string& part : gguf_parts(path)) parts_.push_back(std::make_shared<GgufFile>(part));
}

const GgufTensor* GgufModel::find(const std::string& name) const {
  for (const auto& part : parts_) {
    if (const GgufTensor* tensor = part->find(name)) return tensor;
  }
  return nullptr;
}

at::ScalarType GgufModel::weights_type() const {
  bool all_half = true, all_brain = true;
  for (const auto& part : parts_) {
    for (const GgufTensor& tensor : part->tensors()) {
      if (tensor.shape.size() < 2) continue;
      all_half = all_half && std::string_view(tensor.type->name) == "F16";
      all_brain = all_brain && std::string_view(tensor.type->name) == "BF16";
    }
  }
  return all_brain ? at::kBFloat16 : all_half ? at::kHalf : at::kFloat;
}

Json GgufModel::config() const {
  const GgufFile& file = *parts_.front();
  const Architecture& architecture = architecture_of(file);
  const Metadata metadata(file, architecture);
  const std::string prefix = "[gguf] " + file.path() + ": ";
  MOH_CHECK(metadata.integer("expert_count").value_or(0) == 0, prefix, "mixtures of experts are not supported");
  const GgufTensor* embedding = find("token_embd.weight");
  MOH_CHECK(embedding != nullptr && embedding->shape.size() == 2, prefix,
            "the tensor `token_embd.weight` is missing; the file holds no language model");

  Json config = Json::object();
  config["architectures"] = {architecture.transformers};
  config["model_type"] = architecture.model_type;
  config["vocab_size"] = embedding->shape[0];
  const std::int64_t hidden = metadata.needed("embedding_length"), heads = metadata.needed("attention.head_count");
  MOH_CHECK(hidden > 0 && heads > 0, prefix, "`attention.head_count` and `embedding_length` must be positive");
  config["hidden_size"] = hidden;
  config["intermediate_size"] = metadata.needed("feed_forward_length");
  config["num_hidden_layers"] = metadata.needed("block_count");
  config["num_attention_heads"] = heads;
  config["num_key_value_heads"] = metadata.integer("attention.head_count_kv").value_or(heads);
  const std::int64_t head_dim = metadata.integer("attention.key_length").value_or(hidden / heads);
  MOH_CHECK(metadata.integer("attention.value_length").value_or(head_dim) == head_dim, prefix,
            "keys and values of different lengths are not supported");
  config["head_dim"] = head_dim;
  config["max_position_embeddings"] = metadata.needed("context_length");
  const auto epsilon = metadata.number("attention.layer_norm_rms_epsilon");
  MOH_CHECK(epsilon, prefix, "`", architecture.name, ".attention.layer_norm_rms_epsilon` is missing");
  config["rms_norm_eps"] = shortest(*epsilon);
  config["tie_word_embeddings"] = find("output.weight") == nullptr;
  if (architecture.reordered) {  // llama and its kind
    config["attention_bias"] = find("blk.0.attn_q.bias") != nullptr;
    config["mlp_bias"] = find("blk.0.ffn_gate.bias") != nullptr;
  }
  if (const auto window = metadata.integer("attention.sliding_window"); window.value_or(0) > 0) {
    if (std::string_view(architecture.name) == "llama") {  // llama.cpp has no architecture of its own for Mistral
      config["architectures"] = {"MistralForCausalLM"};
      config["model_type"] = "mistral";
    }
    config["sliding_window"] = *window;
  }

  const double theta = metadata.number("rope.freq_base").value_or(10000.0);
  config["rope_theta"] = shortest(theta);
  const std::int64_t rotated = metadata.integer("rope.dimension_count").value_or(head_dim);
  if (rotated != head_dim) {
    config["partial_rotary_factor"] = static_cast<double>(rotated) / static_cast<double>(head_dim);
  }
  const std::string scaling(metadata.text("rope.scaling.type").value_or("none"));
  const GgufTensor* divisors = find("rope_freqs.weight");
  if (divisors != nullptr) {
    config["rope_scaling"] = rope_rule(file, *divisors, theta, rotated);
  } else if (scaling != "none") {
    config["rope_scaling"] = {{"rope_type", scaling},
                              {"factor", shortest(metadata.number("rope.scaling.factor").value_or(1.0))}};
  } else if (const auto linear = metadata.number("rope.scale_linear"); linear && *linear != 1) {  // files of 2023
    config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", shortest(*linear)}};
  }
  MOH_CHECK(find("rope_factors_long.weight") == nullptr, prefix,
            "LongRoPE (`rope_factors_long.weight`) is not supported; take the model of 4,096 tokens");
  add_own(architecture, metadata, config);
  add_tokens(file, config);
  const at::ScalarType dtype = weights_type();
  config["torch_dtype"] = dtype == at::kHalf ? "float16" : dtype == at::kBFloat16 ? "bfloat16" : "float32";
  return config;
}

std::vector<StoredBlocks> GgufModel::blocks(const std::vector<std::string>& types) const {
  const Json described = config();
  const Loader loader{architecture_of(file()), described["num_attention_heads"], described["num_key_value_heads"],
                      at::kFloat};
  std::vector<StoredBlocks> all;
  for (const auto& part : parts_) {
    for (const GgufTensor& tensor : part->tensors()) {
      const bool wanted = std::find(types.begin(), types.end(), tensor.type->name) != types.end();
      if (!wanted || tensor.shape.size() != 2 || is_rope_factors(tensor.name)) continue;
      const std::int64_t row_bytes = tensor.shape[1] / tensor.type->values * tensor.type->bytes;
      at::Tensor bytes = at::from_blob(
          const_cast<std::byte*>(tensor.bytes.data()), {tensor.shape[0], row_bytes}, [part](void*) {},
          at::TensorOptions(at::kByte));
      const std::string name = transformers_name(loader.architecture, tensor.name);
      if (const std::int64_t heads = loader.reordered_heads(*part, tensor, name); heads > 0) {
        bytes = in_halves(bytes, heads);
      }
      all.push_back({name, tensor.type->name, bytes});
    }
  }
  return all;
}

NamedTensors GgufModel::tensors(std::optional<at::ScalarType> dtype) const {
  const Json described = config();
  const Loader loader{architecture_of(file()), described["num_attention_heads"], described["num_key_value_heads"],
                      dtype.value_or(weights_type())};
  NamedTensors tensors;
  double bytes = 0;
  for (const auto& part : parts_) {
    for (const GgufTensor& tensor : part->tensors()) bytes += static_cast<double>(tensor.bytes.size());
  }
  ActivityCount done("reading weights", bytes, "bytes", kReported);
  for (const auto& part : parts_) {
    for (const GgufTensor& tensor : part->tensors()) {
      if (is_rope_factors(tensor.name)) continue;  // said by the configuration
      const std::string name = transformers_name(loader.architecture, tensor.name);
      tensors.emplace_back(name, loader.load(part, tensor, name));
      done.add(static_cast<double>(tensor.bytes.size()));
    }
  }
  done.end();
  return tensors;
}

}  // namespace moh::io
