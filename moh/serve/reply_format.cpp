#include "moh/serve/reply_format.h"

#include "moh/text/utf8.h"

namespace moh::serve {
namespace {

Json bytes_of(const std::string& bytes) {
  Json list = Json::array();
  for (const unsigned char byte : bytes) list.push_back(byte);
  return list;
}

Json number_or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json completion_logprobs(const std::vector<NamedToken>& tokens) {
  Json texts = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const NamedToken& token : tokens) {
    texts.push_back(token_text(token.bytes));
    values.push_back(number_or_null(token.logprob));
    Json top;
    if (token.logprob) {
      top = Json::object();
      for (const auto& [bytes, logprob] : token.top) {
        if (const std::string text = token_text(bytes); !top.contains(text)) top[text] = logprob;
      }
      // The token itself is named, too, as OpenAI does.
      if (const std::string text = token_text(token.bytes); !top.contains(text)) top[text] = *token.logprob;
    }
    tops.push_back(std::move(top));
    offsets.push_back(token.offset);
  }
  return {{"tokens", texts}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

Json chat_logprobs(const std::vector<NamedToken>& tokens) {
  const auto entry = [](const std::string& bytes, double logprob) {
    return Json{{"token", token_text(bytes)}, {"logprob", logprob}, {"bytes", bytes_of(bytes)}};
  };
  Json content = Json::array();
  for (const NamedToken& token : tokens) {
    Json item = entry(token.bytes, token.logprob.value_or(0));
    item["top_logprobs"] = Json::array();
    for (const auto& [bytes, logprob] : token.top) item["top_logprobs"].push_back(entry(bytes, logprob));
    content.push_back(std::move(item));
  }
  return {{"content", content}};
}

Json logprobs_of(const ReplyHead& head, const std::vector<NamedToken>* tokens) {
  if (tokens == nullptr) return nullptr;
  return head.chat ? chat_logprobs(*tokens) : completion_logprobs(*tokens);
}

}  // namespace

std::string token_text(const std::string& bytes) {
  if (text::is_utf8(bytes)) return bytes;
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string result = "bytes:";
  for (const unsigned char byte : bytes) {
    result += "\\x";
    result += kDigits[byte >> 4];
    result += kDigits[byte & 15];
  }
  return result;
}

std::string sent(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json whole_choice(const ReplyHead& head, std::int64_t index, const std::string& text, const char* finish,
                  const std::vector<NamedToken>* tokens) {
  Json choice = {{"index", index}};
  if (head.chat) {
    choice["message"] = {{"role", "assistant"}, {"content", text}};
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = logprobs_of(head, tokens);
  choice["finish_reason"] = finish;
  return choice;
}

Json chunk_choice(const ReplyHead& head, std::int64_t index, const std::string& text, const char* finish,
                  const std::vector<NamedToken>* tokens, bool first) {
  Json choice = {{"index", index}};
  if (head.chat) {
    Json delta = Json::object();
    if (first) delta["role"] = "assistant";
    if (first || !text.empty()) delta["content"] = text;
    choice["delta"] = delta;
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = logprobs_of(head, tokens);
  choice["finish_reason"] = finish == nullptr ? Json() : Json(finish);
  return choice;
}

Json reply_of(const ReplyHead& head, bool chunk, Json choices, const Usage* usage) {
  const char* const object = !head.chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  Json reply = {{"id", head.id}, {"object", object}, {"created", head.created}, {"model", head.model}};
  reply["choices"] = std::move(choices);
  if (usage != nullptr) {
    reply["usage"] = {{"prompt_tokens", usage->prompt_tokens},
                      {"completion_tokens", usage->completion_tokens},
                      {"total_tokens", usage->prompt_tokens + usage->completion_tokens}};
  }
  return reply;
}

}  // namespace moh::serve
