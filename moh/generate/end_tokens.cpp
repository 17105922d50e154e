#include "moh/generate/end_tokens.h"

#include <filesystem>

#include "moh/io/files.h"
#include "moh/models/llama_config_json.h"

namespace moh::generate {

std::vector<std::int64_t> end_tokens(const std::string& folder, const models::LlamaConfig& config) {
  constexpr std::uint64_t kMaxBytes = 1 << 20;
  const std::string file = folder + "/generation_config.json";
  if (!std::filesystem::exists(file)) return config.eos_token_id;
  const auto ids = models::parse_eos_token_id(parse_json(io::read_file(file, kMaxBytes), file), file);
  return ids.empty() ? config.eos_token_id : ids;
}

}  // namespace moh::generate
