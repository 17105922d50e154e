// Reads tiktoken ranks as Llama 3 publishes them: one token a line, base64, with its rank, which is its id. Split
// pattern and special tokens are not in the file; they are Llama 3's.
#include <algorithm>
#include <charconv>

#include "moh/base/error.h"
#include "moh/io/name_text.h"
#include "moh/text/tokenizer_pipeline.h"

namespace moh::text {

const char* const kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

constexpr std::size_t kSpecialTokens = 256;
constexpr std::size_t kMaxTokenBytes = 256;  // the longest in use have 128; time grows with the square

int base64_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// False: not base64 of whole groups of four.
bool decode_base64(std::string_view text, std::string& bytes) {
  bytes.clear();
  if (text.empty() || text.size() % 4 != 0) return false;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::uint32_t group = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool is_padding = i >= text.size() - padding;
    const int value = is_padding ? 0 : base64_value(text[i]);
    if (value < 0) return false;
    group = group << 6 | static_cast<std::uint32_t>(value);
    if (i % 4 != 3) continue;
    for (int shift = 16; shift >= 0; shift -= 8) bytes += static_cast<char>(group >> shift & 0xff);
    group = 0;
  }
  bytes.erase(bytes.size() - padding);
  return true;
}

std::string special_name(std::size_t i) {
  switch (i) {
    case 0:
      return "<|begin_of_text|>";
    case 1:
      return "<|end_of_text|>";
    case 4:
      return "<|finetune_right_pad_id|>";
    case 6:
      return "<|start_header_id|>";
    case 7:
      return "<|end_header_id|>";
    case 8:
      return "<|eom_id|>";
    case 9:
      return "<|eot_id|>";
    case 10:
      return "<|python_tag|>";
    default:
      return "<|reserved_special_token_" + std::to_string(i < 4 ? i - 2 : i == 5 ? 2 : i - 8) + "|>";
  }
}

}  // namespace

bool is_tiktoken(std::string_view content) {
  const std::string_view line = content.substr(0, std::min(content.find('\n'), std::size_t{4096}));
  const std::size_t space = line.find(' ');
  if (space == 0 || space == std::string_view::npos) return false;
  std::string_view rank = line.substr(space + 1);
  if (rank.ends_with('\r')) rank.remove_suffix(1);
  return std::all_of(line.begin(), line.begin() + static_cast<std::ptrdiff_t>(space),
                     [](char c) { return base64_value(c) >= 0 || c == '='; }) &&
         !rank.empty() && std::all_of(rank.begin(), rank.end(), [](char c) { return c >= '0' && c <= '9'; });
}

TokenizerParts parts_of_tiktoken(std::string_view content, const std::string& label) {
  TokenizerParts parts;
  parts.kind = "tiktoken";
  parts.place = "[tokenizer] " + label + ": ";
  std::vector<std::string> tokens;
  tokens.reserve(static_cast<std::size_t>(std::count(content.begin(), content.end(), '\n')) + 1);
  std::string bytes;
  for (std::size_t line_number = 1; !content.empty(); ++line_number) {
    const std::size_t end = std::min(content.find('\n'), content.size());
    std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const std::size_t space = std::min(line.find(' '), line.size());
    MOH_CHECK(space < line.size() && space <= 2 * kMaxTokenBytes && decode_base64(line.substr(0, space), bytes) &&
                  !bytes.empty(),
              parts.place, "line ", line_number, ": expected a token in base64, a space and its rank");
    std::size_t rank = 0;
    const char* const rank_end = line.data() + line.size();
    const auto [read, error] = std::from_chars(line.data() + space + 1, rank_end, rank);
    MOH_CHECK(error == std::errc() && read == rank_end && rank == tokens.size(), parts.place, "line ", line_number,
              ": expected the rank ", tokens.size(), ", got `", io::one_line(line.substr(space + 1, 40)), "`");
    tokens.push_back(bytes);
  }
  const std::size_t count = tokens.size();
  parts.bpe = std::make_unique<Bpe>(std::move(tokens), BpeOptions{.ignore_merges = true});
  for (std::size_t id = 0; id < count; ++id) {
    MOH_CHECK(parts.bpe->id_of(parts.bpe->tokens()[id]) == static_cast<std::int32_t>(id), parts.place,
              "the token of rank ", id, " has another rank too");
  }
  for (int byte = 0; byte < 256; ++byte) {
    const std::string token(1, static_cast<char>(byte));
    MOH_CHECK(parts.bpe->id_of(token) != Bpe::kNone, parts.place, "no token for the byte ", byte,
              ": not every text could be encoded");
  }
  parts.splitters.emplace_back(SplitStep{Regex(kLlama3Pattern, parts.place)});
  for (std::size_t i = 0; i < kSpecialTokens; ++i) {
    parts.added.push_back({.content = special_name(i), .id = static_cast<std::int32_t>(count + i), .special = true});
  }
  parts.bos_id = static_cast<std::int64_t>(count);
  parts.eos_id = static_cast<std::int64_t>(count) + 1;
  parts.adds_bos = true;
  return parts;
}

}  // namespace moh::text
