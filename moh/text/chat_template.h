// A model's chat template: how a conversation is written as the text that the model continues.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moh/base/fields.h"
#include "moh/text/jinja_value.h"

namespace moh::text {

struct Message {
  std::string role, content;
};

class ChatTemplate {
 public:
  // `source` is written in Jinja; `label` names it in errors. Error: what is not supported or not correct, with its
  // line.
  ChatTemplate(std::string_view source, const std::string& label, const jinja::Limits& limits = {});
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // The text that the template makes of `variables`, an object with `messages` (a list of objects with `role` and
  // `content`) and whatever else it shall see: `add_generation_prompt`, `tools`, `bos_token` ... Error: the template
  // refuses the conversation, or cannot be followed.
  std::string render(const Json& variables) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The template of a model folder: chat_template.jinja, else chat_template.json, else `chat_template` of
// tokenizer_config.json (of several the one named "default"), else that of a GGUF file. Nothing: it has none.
// `bos_token` and `eos_token` are what tokenizer_config.json says they are, "" where it does not.
struct ChatSource {
  std::string text, label;
  std::string bos_token, eos_token;
};
std::optional<ChatSource> find_chat_template(const std::string& folder);

// A conversation as people write it: a list of messages, or an object with `messages` and perhaps `tools` and other
// variables. Returns an object with `messages`. Error: what it is instead.
Json read_conversation(std::string_view content, const std::string& label);

}  // namespace moh::text
