#include "moh/text/chat_template.h"

#include <array>
#include <ctime>
#include <filesystem>
#include <utility>

#include "moh/io/files.h"
#include "moh/io/gguf.h"
#include "moh/io/name_text.h"
#include "moh/text/jinja_interpreter.h"
#include "moh/text/utf8.h"

namespace moh::text {
namespace {

constexpr std::uint64_t kMaxTemplateBytes = 1 << 20;  // the longest in use have 20 KB
constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{1} << 24;

using jinja::Arguments;
using jinja::Interpreter;
using jinja::Value;

[[noreturn]] void raise_exception(const Arguments& arguments, jinja::Budget& budget) {
  jinja::fault("the template refuses the conversation: ",
               arguments.places.empty() ? "" : jinja::str(arguments.places[0], budget));
}

// Local time, as transformers has it.
Value strftime_now(const Arguments& arguments) {
  arguments.expect("strftime_now", 1, 1, {"format"});
  const Value* format = arguments.find(0, "format");
  if (format == nullptr || format->string() == nullptr) jinja::fault("strftime_now() takes a format");
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  std::array<char, 1024> buffer;
  // A first character of its own tells an empty result from one that does not fit.
  const std::string marked = "|" + *format->string();
  const std::size_t size = std::strftime(buffer.data(), buffer.size(), marked.c_str(), &parts);
  if (size == 0) jinja::fault("strftime_now() makes more than ", buffer.size(), " bytes");
  return Value(repair_utf8(std::string_view(buffer.data() + 1, size - 1)));
}

}  // namespace

struct ChatTemplate::Impl {
  std::string label;
  jinja::Limits limits;
  std::vector<jinja::NodePtr> nodes;

  [[noreturn]] void fail_at(int line, const char* what) const {
    fail("[chat template] ", label, ": line ", line, ": ", io::one_line(std::string_view(what).substr(0, 400)));
  }
};

ChatTemplate::ChatTemplate(std::string_view source, const std::string& label, const jinja::Limits& limits)
    : impl_(std::make_unique<Impl>()) {
  impl_->label = label;
  impl_->limits = limits;
  MOH_CHECK(source.size() <= kMaxTemplateBytes, "[chat template] ", label, ": has ", source.size(),
            " bytes, expected at most ", kMaxTemplateBytes);
  int line = 1;
  try {
    impl_->nodes = jinja::parse(is_utf8(source) ? std::string(source) : repair_utf8(source), line);
  } catch (const jinja::Fault& fault) {
    impl_->fail_at(line, fault.what());
  }
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const Json& variables) const {
  Interpreter interpreter(impl_->limits);
  try {
    std::vector<std::pair<std::string, Value>> values;
    values.emplace_back("raise_exception",
                        jinja::function("raise_exception", [](Interpreter& in, const Arguments& arguments) -> Value {
                          raise_exception(arguments, in.budget);
                        }));
    values.emplace_back("strftime_now", jinja::function("strftime_now", [](Interpreter&, const Arguments& arguments) {
                          return strftime_now(arguments);
                        }));
    for (const auto& [name, value] : variables.items())
      values.emplace_back(name, jinja::value_of_json(value, interpreter.budget));
    return interpreter.run(impl_->nodes, std::move(values));
  } catch (const jinja::Fault& fault) {
    impl_->fail_at(interpreter.line(), fault.what());
  }
}

namespace {

bool is_file(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

// Of a token: its text, or an object that holds it.
std::string token_text(const Json& config, const char* name) {
  const auto found = config.find(name);
  if (found == config.end()) return "";
  const Json* text = &*found;
  if (found->is_object() && found->contains("content")) text = &(*found)["content"];
  return text->is_string() ? text->get<std::string>() : "";
}

// A template, or a list of named ones.
std::optional<std::string> template_of(const Json& value, const std::string& label) {
  if (value.is_null()) return std::nullopt;
  if (value.is_string()) return value.get<std::string>();
  MOH_CHECK(value.is_array(), "[chat template] ", label, ": `chat_template` must be a string or a list of named ones");
  std::string names;
  for (const Json& item : value) {
    const bool is_named = item.is_object() && item.contains("name") && item["name"].is_string() &&
                          item.contains("template") && item["template"].is_string();
    MOH_CHECK(is_named, "[chat template] ", label, ": a template of the list needs `name` and `template`");
    if (item["name"] == "default") return item["template"].get<std::string>();
    names += (names.empty() ? "" : ", ") + io::name_text(item["name"].get<std::string>());
  }
  fail("[chat template] ", label, ": none of its templates is named \"default\", got ", names);
}

}  // namespace

std::optional<ChatSource> find_chat_template(const std::string& folder) {
  ChatSource source;
  const std::string config_file = folder + "/tokenizer_config.json";
  Json config = Json::object();
  if (is_file(config_file)) {
    config = parse_json(io::read_file(config_file, kMaxConfigBytes), config_file);
    MOH_CHECK(config.is_object(), "[chat template] ", config_file, ": expected an object");
    source.bos_token = token_text(config, "bos_token");
    source.eos_token = token_text(config, "eos_token");
  }
  source.label = folder + "/chat_template.jinja";
  if (is_file(source.label)) {
    source.text = io::read_file(source.label, kMaxTemplateBytes);
    return source;
  }
  const std::string json_file = folder + "/chat_template.json";
  for (const std::string& file : {json_file, config_file}) {
    if (!is_file(file)) continue;
    const Json root = file == config_file ? config : parse_json(io::read_file(file, kMaxConfigBytes), file);
    MOH_CHECK(root.is_object(), "[chat template] ", file, ": expected an object");
    const auto found = root.find("chat_template");
    if (found == root.end()) continue;
    if (std::optional<std::string> text = template_of(*found, file)) {
      source.text = std::move(*text);
      source.label = file;
      return source;
    }
  }
  if (const auto gguf = io::find_gguf(folder)) {
    const io::GgufFile file(*gguf);
    const auto text = file.text("tokenizer.chat_template");
    if (!text) return std::nullopt;
    source.text = *text;
    source.label = *gguf;
    const std::vector<std::string_view> tokens = file.texts("tokenizer.ggml.tokens");
    const auto token = [&](const char* key) {
      const auto id = file.integer(key).value_or(-1);
      return id >= 0 && id < static_cast<std::int64_t>(tokens.size())
                 ? std::string(tokens[static_cast<std::size_t>(id)])
                 : "";
    };
    source.bos_token = token("tokenizer.ggml.bos_token_id");
    source.eos_token = token("tokenizer.ggml.eos_token_id");
    return source;
  }
  return std::nullopt;
}

Json read_conversation(std::string_view content, const std::string& label) {
  Json root = parse_json(content, label);
  if (root.is_array()) root = Json{{"messages", std::move(root)}};
  const auto messages = root.find("messages");
  MOH_CHECK(root.is_object() && messages != root.end() && messages->is_array() && !messages->empty(), "[chat] ", label,
            ": expected a list of messages, or an object with the list `messages`");
  for (std::size_t i = 0; i < messages->size(); ++i) {
    const Json& message = (*messages)[i];
    MOH_CHECK(message.is_object() && message.contains("role") && message["role"].is_string(), "[chat] ", label,
              ": message ", i, " must be an object with `role` and `content`");
  }
  return root;
}

}  // namespace moh::text
