#include "moh/serve/completion_request.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>

#include "moh/base/error.h"

namespace moh::serve {
namespace {

constexpr std::int64_t kMostTokens = 1 << 24, kMostPrompts = 2048, kMostChoices = 128, kMostLogprobs = 20;
constexpr std::size_t kMostStops = 16, kMostStopBytes = 1024, kMostBiases = 1024;
constexpr int kDepth = 32;

std::string json_text(const Json& value) { return value.dump(-1, ' ', true, Json::error_handler_t::replace); }
std::string shown(const Json& value) { return json_text(value).substr(0, 60); }
// A client's name in one line: its control characters as JSON writes them, less the quotes.
std::string shown_name(const std::string& name) {
  const std::string text = json_text(name);
  return text.substr(1, std::min<std::size_t>(text.size() - 2, 60));
}

// One field of a request.
struct Field {
  const std::string& name;
  const Json& value;

  [[noreturn]] void refuse(const std::string& wanted) const {
    fail("[request] `", name, "` must be ", wanted, ", got ", shown(value));
  }
  std::int64_t integer(std::int64_t least, std::int64_t most) const {
    const std::string wanted = "an integer from " + std::to_string(least) + " to " + std::to_string(most);
    std::int64_t number = 0;
    if (value.is_number_unsigned() ? value.get<std::uint64_t>() > static_cast<std::uint64_t>(most)
                                   : !value.is_number_integer()) {
      refuse(wanted);
    }
    number = value.get<std::int64_t>();
    if (number < least || number > most) refuse(wanted);
    return number;
  }
  double number(double least, double most) const {
    if (!value.is_number()) refuse("a number");
    const double result = value.get<double>();
    if (!(result >= least && result <= most)) {
      refuse("a number from " + Json(least).dump() + " to " + Json(most).dump());
    }
    return result;
  }
  bool flag() const {
    if (!value.is_boolean()) refuse("true or false");
    return value.get<bool>();
  }
  std::string text() const {
    if (!value.is_string()) refuse("a string");
    return value.get<std::string>();
  }
};

using Fields = std::map<std::string, std::function<void(CompletionRequest&, const Field&)>>;

std::vector<std::int64_t> token_ids(const Field& field, const Json& list) {
  std::vector<std::int64_t> ids;
  for (const Json& each : list) ids.push_back(Field{field.name, each}.integer(0, kMostTokens));
  return ids;
}

void read_prompt(CompletionRequest& request, const Field& field) {
  const Json& value = field.value;
  const char* const wanted = "a string, a list of strings, a list of token ids, or a list of those";
  if (value.is_string()) {
    request.prompts.emplace_back(value.get<std::string>());
    return;
  }
  if (!value.is_array() || value.empty()) field.refuse(wanted);
  if (value[0].is_number()) {
    request.prompts.emplace_back(token_ids(field, value));
    return;
  }
  if (value.size() > static_cast<std::size_t>(kMostPrompts)) {
    field.refuse("at most " + std::to_string(kMostPrompts) + " prompts");
  }
  for (const Json& each : value) {
    if (each.is_string()) {
      request.prompts.emplace_back(each.get<std::string>());
    } else if (each.is_array() && !each.empty()) {
      request.prompts.emplace_back(token_ids(field, each));
    } else {
      field.refuse(wanted);
    }
  }
}

void read_stop(CompletionRequest& request, const Field& field) {
  const auto add = [&](const Json& each) {
    if (!each.is_string() || each.get_ref<const std::string&>().empty() ||
        each.get_ref<const std::string&>().size() > kMostStopBytes) {
      field.refuse("a string or a list of strings, none empty or longer than " + std::to_string(kMostStopBytes) +
                   " bytes");
    }
    request.stop.push_back(each.get<std::string>());
  };
  if (!field.value.is_array()) return add(field.value);
  if (field.value.size() > kMostStops) field.refuse("at most " + std::to_string(kMostStops) + " strings");
  for (const Json& each : field.value) add(each);
}

void read_logit_bias(CompletionRequest& request, const Field& field) {
  if (!field.value.is_object() || field.value.size() > kMostBiases) {
    field.refuse("an object of at most " + std::to_string(kMostBiases) + " token ids with their biases");
  }
  for (const auto& item : field.value.items()) {
    std::int64_t id = 0;
    const std::string& key = item.key();
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id > kMostTokens) {
      field.refuse("an object whose keys are token ids");
    }
    request.logit_bias.emplace_back(id, Field{field.name, item.value()}.number(-100, 100));
  }
}

// What both kinds of requests know.
Fields common_fields() {
  const auto ignored = [](CompletionRequest&, const Field&) {};
  return {
      {"model", [](CompletionRequest&, const Field& field) { field.text(); }},
      {"user", ignored},
      {"max_tokens",
       [](CompletionRequest& request, const Field& field) { request.max_tokens = field.integer(0, kMostTokens); }},
      {"temperature",
       [](CompletionRequest& request, const Field& field) { request.temperature = field.number(0, 100); }},
      {"top_p", [](CompletionRequest& request, const Field& field) { request.top_p = field.number(1e-9, 1); }},
      {"top_k", [](CompletionRequest& request,
                   const Field& field) { request.top_k = std::max<std::int64_t>(0, field.integer(-1, kMostTokens)); }},
      {"n", [](CompletionRequest& request, const Field& field) { request.n = field.integer(1, kMostChoices); }},
      {"presence_penalty",
       [](CompletionRequest& request, const Field& field) { request.presence_penalty = field.number(-2, 2); }},
      {"frequency_penalty",
       [](CompletionRequest& request, const Field& field) { request.frequency_penalty = field.number(-2, 2); }},
      {"repetition_penalty",
       [](CompletionRequest& request, const Field& field) { request.repetition_penalty = field.number(0.01, 100); }},
      {"logit_bias", read_logit_bias},
      {"seed",
       [](CompletionRequest& request, const Field& field) {
         request.seed = static_cast<std::uint64_t>(
             field.integer(std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()));
       }},
      {"stop", read_stop},
      {"stream", [](CompletionRequest& request, const Field& field) { request.stream = field.flag(); }},
      {"stream_options",
       [](CompletionRequest& request, const Field& field) {
         if (!field.value.is_object()) field.refuse("an object");
         for (const auto& item : field.value.items()) {
           if (item.key() != "include_usage") field.refuse("an object with `include_usage`");
           request.include_usage = Field{field.name, item.value()}.flag();
         }
       }},
      {"activated", [](CompletionRequest& request, const Field& field) { request.activated = field.number(1e-9, 1); }},
      {"ignore_eos", [](CompletionRequest& request, const Field& field) { request.ignore_eos = field.flag(); }},
      {"head_usage", [](CompletionRequest& request, const Field& field) { request.head_usage = field.flag(); }},
  };
}

CompletionRequest parse(std::string_view body, const Fields& fields) {
  const Json json = parse_json(body, "request", kDepth);
  MOH_CHECK(json.is_object(), "[request] the body must be a JSON object, got ", json.type_name());
  CompletionRequest request;
  for (const auto& item : json.items()) {
    const auto field = fields.find(item.key());
    if (field == fields.end()) {
      std::vector<std::string> known;
      for (const auto& each : fields) known.push_back(each.first);
      const std::string near = nearest_name(item.key(), known);
      fail("[request] unknown field `", shown_name(item.key()), "`",
           near.empty() ? "" : ", did you mean `" + near + "`?");
    }
    if (item.value().is_null()) continue;  // as if it were not there
    field->second(request, {item.key(), item.value()});
  }
  return request;
}

}  // namespace

CompletionRequest parse_completion(std::string_view body) {
  static const Fields fields = [] {
    Fields all = common_fields();
    all["prompt"] = read_prompt;
    all["echo"] = [](CompletionRequest& request, const Field& field) { request.echo = field.flag(); };
    all["logprobs"] = [](CompletionRequest& request, const Field& field) {
      request.logprobs = field.integer(0, kMostLogprobs);
    };
    all["best_of"] = [](CompletionRequest&, const Field& field) { field.integer(1, 1); };
    all["suffix"] = [](CompletionRequest&, const Field& field) {
      if (field.value != "") field.refuse("absent: text cannot be inserted");
    };
    return all;
  }();
  CompletionRequest request = parse(body, fields);
  MOH_CHECK(!request.prompts.empty(), "[request] `prompt` is missing");
  return request;
}

CompletionRequest parse_chat(std::string_view body) {
  bool wants_logprobs = false;
  std::int64_t top = -1;
  Fields fields = common_fields();
  fields["messages"] = [](CompletionRequest& request, const Field& field) {
    if (!field.value.is_array() || field.value.empty()) field.refuse("a list of messages");
    for (const Json& message : field.value) {
      if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
        field.refuse("a list of objects with `role` and `content`");
      }
    }
    request.messages = field.value;
  };
  fields["max_completion_tokens"] = fields["max_tokens"];
  fields["logprobs"] = [&](CompletionRequest&, const Field& field) { wants_logprobs = field.flag(); };
  fields["top_logprobs"] = [&](CompletionRequest&, const Field& field) { top = field.integer(0, kMostLogprobs); };
  fields["tools"] = [](CompletionRequest& request, const Field& field) {
    if (!field.value.is_array()) field.refuse("a list");
    request.template_variables["tools"] = field.value;
  };
  fields["chat_template_kwargs"] = [](CompletionRequest& request, const Field& field) {
    if (!field.value.is_object()) field.refuse("an object");
    for (const auto& item : field.value.items()) request.template_variables[item.key()] = item.value();
  };
  fields["response_format"] = [](CompletionRequest&, const Field& field) {
    if (!field.value.is_object() || field.value.value("type", Json()) != "text") {
      field.refuse("{\"type\": \"text\"}: nothing constrains the form of a reply");
    }
  };
  CompletionRequest request = parse(body, fields);
  MOH_CHECK(!request.messages.is_null(), "[request] `messages` is missing");
  MOH_CHECK(top <= 0 || wants_logprobs, "[request] `top_logprobs` needs `logprobs`: true");
  if (wants_logprobs) request.logprobs = std::max<std::int64_t>(top, 0);
  return request;
}

}  // namespace moh::serve
