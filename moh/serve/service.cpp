#include "moh/serve/service.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>
#include <random>
#include <thread>

#include "moh/base/error.h"
#include "moh/generate/end_tokens.h"
#include "moh/io/files.h"
#include "moh/serve/completion_request.h"
#include "moh/serve/page.h"
#include "moh/serve/reply_format.h"
#include "moh/text/chat_template.h"
#include "moh/text/text_stream.h"

namespace moh::serve {
namespace {

constexpr std::string_view kJson = "application/json";

// An error that the client is told of, with its status.
struct Refusal {
  int status;
  std::string message;
};

// Takes as long whatever the difference is.
bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]);
  }
  return difference == 0;
}

// "[place] message" of the library's errors, as a client is told it.
std::string without_place(const std::string& message) {
  const auto end = message.find("] ");
  return message.starts_with('[') && end != std::string::npos ? message.substr(end + 2) : message;
}

std::int64_t code_points(std::string_view text) {
  std::int64_t count = 0;
  for (const unsigned char byte : text) count += (byte & 0xC0) != 0x80;
  return count;
}

// One generation of a reply: prompt, index, and the text that has come so far.
struct Choice {
  std::vector<std::int64_t> prompt;
  std::int64_t number = 0;  // in the engine
  text::TextStream echoed, generated;
  std::int64_t length = 0;  // code points of the text so far
  bool prompt_ended = false, begun = false, ended = false;
  // Of a whole reply.
  std::string text;
  std::vector<NamedToken> tokens;
  Json head_usage = Json::array();
  const char* finish = nullptr;

  Choice(const text::Tokenizer& tokenizer, std::vector<std::int64_t> ids, const std::vector<std::string>& stops)
      : prompt(std::move(ids)), echoed({}, tokenizer.strips_leading_space()), generated(stops) {}
};

struct Event {
  std::size_t choice;
  std::string text;
  std::optional<NamedToken> token;
  std::vector<std::string> heads;  // of the token, if asked for
  bool of_prompt = false;
  std::optional<Finish> finish;
};

// From the engine's thread to the connection's.
struct Channel {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Event> events;

  void push(Event event) {
    const std::lock_guard lock(mutex);
    events.push_back(std::move(event));
    changed.notify_one();
  }
  // Nothing: none came for a while.
  std::optional<Event> pop(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex);
    if (!changed.wait_for(lock, time, [&] { return !events.empty(); })) return std::nullopt;
    Event event = std::move(events.front());
    events.pop_front();
    return event;
  }
};

Json read_json_file(const std::string& file) {
  constexpr std::uint64_t kMaxBytes = 4 << 20;
  if (!std::filesystem::exists(file)) return Json::object();
  return parse_json(io::read_file(file, kMaxBytes), file);
}

}  // namespace

struct Service::Impl {
  ServiceOptions options;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  models::Llama& model;
  std::int64_t context, bos, layers, heads;
  std::optional<double> share;  // of the heads, of a MoH model
  std::vector<std::int64_t> end_ids;
  std::optional<text::ChatTemplate> chat;
  std::string bos_token, eos_token, chat_source;
  Engine engine;

  std::mutex mutex;
  std::condition_variable work;
  bool has_work = false, stop = false;
  std::atomic<std::int64_t> requests{0};
  const std::int64_t started = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::thread thread;

  Impl(models::Llama& served, std::shared_ptr<const text::Tokenizer> with, const ServiceOptions& wanted)
      : options(wanted),
        tokenizer(std::move(with)),
        model(served),
        context(served.config().max_position_embeddings),
        bos(served.config().bos_token_id >= 0 ? served.config().bos_token_id : tokenizer->bos_id()),
        layers(served.config().num_hidden_layers),
        heads(served.config().num_attention_heads),
        share(served.config().moh ? std::optional(served.config().activated_share()) : std::nullopt),
        end_ids(generate::end_tokens(options.folder, served.config())),
        engine(served, options.engine) {
    if (const auto source = text::find_chat_template(options.folder)) {
      chat.emplace(source->text, source->label);
      chat_source = source->text;
      bos_token = source->bos_token;
      eos_token = source->eos_token;
    }
    thread = std::thread([this] { run(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
      work.notify_all();
    }
    thread.join();
  }

  void run() {
    for (;;) {
      {
        std::unique_lock lock(mutex);
        work.wait(lock, [&] { return has_work || stop; });
        if (stop) return;
        has_work = false;
      }
      while (engine.step()) {
        const std::lock_guard lock(mutex);
        if (stop) return;
      }
    }
  }

  void wake() {
    const std::lock_guard lock(mutex);
    has_work = true;
    work.notify_all();
  }

  // Ids of the model's vocabulary beyond the tokenizer's are no text.
  std::string bytes_of(std::int64_t id) const {
    return id >= 0 && id < tokenizer->vocab_size() ? tokenizer->piece_bytes(id) : std::string();
  }

  NamedToken named(const Token& token, std::int64_t offset) const {
    NamedToken result;
    result.bytes = bytes_of(token.id);
    result.logprob = token.logprob;
    for (const TokenLogprob& each : token.top) result.top.emplace_back(bytes_of(each.id), each.logprob);
    result.offset = offset;
    return result;
  }

  std::vector<std::int64_t> ids_of(const Prompt& prompt) const {
    if (const auto* ids = std::get_if<std::vector<std::int64_t>>(&prompt)) return *ids;
    return text::prompt_ids(*tokenizer, std::get<std::string>(prompt), bos, /*parse_special=*/false);
  }

  std::vector<std::int64_t> chat_ids(const CompletionRequest& request) const {
    if (!chat) throw Refusal{400, "the model has no chat template; use /v1/completions"};
    Json variables = request.template_variables;
    variables["messages"] = request.messages;
    variables["add_generation_prompt"] = true;
    variables["bos_token"] = bos_token;
    variables["eos_token"] = eos_token;
    return text::prompt_ids(*tokenizer, chat->render(variables), bos, /*parse_special=*/true);
  }

  // What the engine is to do for a choice; its events go to `channel`.
  Request engine_request(const CompletionRequest& wanted, Choice& choice, std::size_t index, std::int64_t sample,
                         const std::shared_ptr<Channel>& channel, bool is_chat) const {
    Request request;
    const auto prompt_size = static_cast<std::int64_t>(choice.prompt.size());
    const std::int64_t left = std::max<std::int64_t>(0, context - prompt_size);
    request.prompt = choice.prompt;
    request.max_tokens = wanted.max_tokens ? *wanted.max_tokens
                         : is_chat         ? std::max<std::int64_t>(1, left)
                                           : options.default_tokens;
    request.sampling.temperature = wanted.temperature;
    request.sampling.top_p = wanted.top_p;
    request.sampling.top_k = wanted.top_k;
    request.sampling.presence_penalty = wanted.presence_penalty;
    request.sampling.frequency_penalty = wanted.frequency_penalty;
    request.sampling.repetition_penalty = wanted.repetition_penalty;
    request.sampling.logit_bias = wanted.logit_bias;
    request.sampling.seed = (wanted.seed ? *wanted.seed : std::random_device()()) + static_cast<std::uint64_t>(sample);
    if (!wanted.ignore_eos) request.end_ids = end_ids;
    request.echo = wanted.echo;
    request.top_logprobs = wanted.logprobs;
    request.tell_heads = wanted.head_usage;
    request.activated = wanted.activated;
    request.on_token = [this, &choice, index, channel](const Token& token) {
      Event event;
      event.choice = index;
      event.of_prompt = token.of_prompt;
      event.token = named(token, choice.length);
      event.heads = token.heads;
      if (token.of_prompt) {
        event.text = choice.echoed.push(bytes_of(token.id));
      } else {
        if (!choice.prompt_ended) event.text = choice.echoed.finish();
        choice.prompt_ended = true;
        event.text += choice.generated.push(bytes_of(token.id));
      }
      choice.length += code_points(event.text);
      channel->push(std::move(event));
      return !choice.generated.stopped();
    };
    request.on_finish = [&choice, index, channel](Finish how, const std::string&) {
      Event event;
      event.choice = index;
      if (!choice.prompt_ended) event.text = choice.echoed.finish();
      if (how != Finish::kCancelled) event.text += choice.generated.finish();
      event.finish = how;
      channel->push(std::move(event));
    };
    return request;
  }

  void complete(const std::string& body, bool is_chat, HttpReply& reply) {
    const CompletionRequest wanted = is_chat ? parse_chat(body) : parse_completion(body);
    std::vector<std::vector<std::int64_t>> prompts;
    if (is_chat) {
      prompts.push_back(chat_ids(wanted));
    } else {
      for (const Prompt& prompt : wanted.prompts) prompts.push_back(ids_of(prompt));
    }
    const auto count = static_cast<std::int64_t>(prompts.size()) * wanted.n;
    if (const std::int64_t waiting = engine.state().waiting; waiting > 0 && waiting + count > options.waiting) {
      throw Refusal{429, "too many requests are waiting; try again"};
    }

    // Shared with the engine's callbacks, which may outlive this call.
    struct Shared {
      std::shared_ptr<Channel> channel = std::make_shared<Channel>();
      std::deque<Choice> choices;
    };
    const auto shared = std::make_shared<Shared>();
    Usage usage;
    for (const auto& prompt : prompts) {
      usage.prompt_tokens += static_cast<std::int64_t>(prompt.size());
      for (std::int64_t i = 0; i < wanted.n; ++i) shared->choices.emplace_back(*tokenizer, prompt, wanted.stop);
    }
    const auto cancel_all = [&] {
      for (const Choice& choice : shared->choices) {
        if (choice.number > 0 && !choice.ended) engine.cancel(choice.number);
      }
      wake();
    };
    try {
      for (std::size_t i = 0; i < shared->choices.size(); ++i) {
        Choice& choice = shared->choices[i];
        Request request =
            engine_request(wanted, choice, i, static_cast<std::int64_t>(i) % wanted.n, shared->channel, is_chat);
        // The callbacks keep what they use alive.
        request.on_token = [shared, inner = std::move(request.on_token)](const Token& token) { return inner(token); };
        request.on_finish = [shared, inner = std::move(request.on_finish)](Finish how, const std::string& error) {
          inner(how, error);
        };
        choice.number = engine.submit(std::move(request));
      }
    } catch (...) {
      cancel_all();
      throw;
    }
    wake();

    ReplyHead head;
    head.chat = is_chat;
    head.id = (is_chat ? "chatcmpl-" : "cmpl-") + std::to_string(started) + "-" + std::to_string(++requests);
    head.model = options.name;
    head.created = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
    bool begun = false;  // the stream
    std::size_t ended = 0;
    while (ended < shared->choices.size()) {
      auto event = shared->channel->pop(std::chrono::milliseconds(200));
      if (!event) {
        if (!reply.connected()) return cancel_all();
        continue;
      }
      Choice& choice = shared->choices[event->choice];
      const bool is_token = event->token.has_value();
      if (is_token && !event->of_prompt) ++usage.completion_tokens;
      if (event->finish) {
        choice.ended = true;
        ++ended;
        if (*event->finish == Finish::kError || *event->finish == Finish::kCancelled) {
          cancel_all();
          if (!begun) throw Refusal{500, "the model could not compute this request"};
          reply.write("data: " + error_body(500, "the model could not compute this request") + "\n\n");
          return reply.end();
        }
        choice.finish = *event->finish == Finish::kStop ? "stop" : "length";
      }
      std::vector<NamedToken> tokens;
      if (is_token && wanted.logprobs >= 0) tokens.push_back(std::move(*event->token));
      if (!wanted.stream) {
        if (!event->heads.empty()) choice.head_usage.push_back(event->heads);
        choice.text += event->text;
        for (NamedToken& token : tokens) choice.tokens.push_back(std::move(token));
        continue;
      }
      if (!begun) reply.begin("text/event-stream; charset=utf-8");
      begun = true;
      if (event->text.empty() && tokens.empty() && event->heads.empty() && !event->finish && choice.begun) continue;
      const bool first = !choice.begun;
      choice.begun = true;
      Json chunk = chunk_choice(head, static_cast<std::int64_t>(event->choice), event->text,
                                event->finish ? choice.finish : nullptr, tokens.empty() ? nullptr : &tokens, first);
      if (!event->heads.empty()) chunk["head_usage"] = Json::array({event->heads});
      const Json event_reply = reply_of(head, /*chunk=*/true, Json::array({std::move(chunk)}), nullptr);
      if (!reply.write("data: " + sent(event_reply) + "\n\n")) return cancel_all();
    }
    if (wanted.stream) {
      if (!begun) reply.begin("text/event-stream; charset=utf-8");
      if (wanted.include_usage) reply.write("data: " + sent(reply_of(head, true, Json::array(), &usage)) + "\n\n");
      reply.write("data: [DONE]\n\n");
      return reply.end();
    }
    Json choices = Json::array();
    for (std::size_t i = 0; i < shared->choices.size(); ++i) {
      const Choice& choice = shared->choices[i];
      choices.push_back(whole_choice(head, static_cast<std::int64_t>(i), choice.text, choice.finish,
                                     wanted.logprobs >= 0 ? &choice.tokens : nullptr));
      if (wanted.head_usage) choices.back()["head_usage"] = choice.head_usage;
    }
    reply.send(200, kJson, sent(reply_of(head, /*chunk=*/false, std::move(choices), &usage)));
  }

  void tokenize(const std::string& body, HttpReply& reply) const {
    const Json json = parse_json(body, "request", 32);
    const char* const key = json.is_object() && json.contains("content") ? "content" : "prompt";
    if (!json.is_object() || !json.contains(key) || !json[key].is_string()) {
      throw Refusal{400, "`prompt` must be a string"};
    }
    const bool special = !json.contains("add_special_tokens") || json["add_special_tokens"] == true;
    const auto& prompt = json[key].get_ref<const std::string&>();
    const auto ids =
        special ? text::prompt_ids(*tokenizer, prompt, bos, /*parse_special=*/false) : tokenizer->encode(prompt);
    reply.send(200, kJson, sent({{"tokens", ids}, {"count", ids.size()}, {"max_model_len", context}}));
  }

  void detokenize(const std::string& body, HttpReply& reply) const {
    const Json json = parse_json(body, "request", 32);
    if (!json.is_object() || !json.contains("tokens") || !json["tokens"].is_array()) {
      throw Refusal{400, "`tokens` must be a list of token ids"};
    }
    std::vector<std::int64_t> ids;
    for (const Json& each : json["tokens"]) {
      if (!each.is_number_integer() || each < 0 || each >= tokenizer->vocab_size()) {
        throw Refusal{400, "`tokens` must be a list of token ids below " + std::to_string(tokenizer->vocab_size())};
      }
      ids.push_back(each.get<std::int64_t>());
    }
    reply.send(200, kJson, sent({{"prompt", tokenizer->decode(ids)}}));
  }

  void tokenizer_info(HttpReply& reply) const {
    Json info = read_json_file(options.folder + "/tokenizer_config.json");
    if (!info.is_object()) info = Json::object();
    const auto fill_in = [&](const char* key, const std::string& value, std::int64_t id) {
      if (info.contains(key) && info[key].is_object() && info[key].contains("content"))
        info[key] = info[key]["content"];
      if (info.contains(key) && info[key].is_string()) return;
      info[key] = !value.empty() ? Json(value) : id >= 0 ? Json(tokenizer->decode({id})) : Json();
    };
    fill_in("bos_token", bos_token, tokenizer->bos_id());
    fill_in("eos_token", eos_token, tokenizer->eos_id());
    if (!info.contains("pad_token")) info["pad_token"] = info["eos_token"];
    if (!info.contains("tokenizer_class")) info["tokenizer_class"] = tokenizer->kind();
    if (chat && !info.contains("chat_template")) info["chat_template"] = chat_source;
    reply.send(200, kJson, sent(info));
  }

  void models_list(HttpReply& reply) const {
    Json entry = {{"id", options.name}, {"object", "model"},        {"created", started},
                  {"owned_by", "moh"},  {"max_model_len", context}, {"root", options.folder}};
    entry["moh"] = {
        {"layers", layers}, {"heads", heads}, {"activated", share ? Json(*share) : Json()}, {"chat", chat.has_value()}};
    reply.send(200, kJson, sent({{"object", "list"}, {"data", Json::array({entry})}}));
  }

  void metrics(HttpReply& reply) const {
    const EngineState state = engine.state();
    std::string text;
    const auto line = [&](const char* name, const char* type, const char* help, std::int64_t value) {
      text += std::string("# HELP moh_") + name + " " + help + "\n# TYPE moh_" + name + " " + type + "\nmoh_" + name +
              " " + std::to_string(value) + "\n";
    };
    line("requests_running", "gauge", "Sequences that are being computed", state.running);
    line("requests_waiting", "gauge", "Sequences that wait for their turn", state.waiting);
    line("cache_pages", "gauge", "Pages of the KV cache", state.pages);
    line("cache_pages_used", "gauge", "Pages that sequences use", state.used_pages);
    line("cache_pages_kept", "gauge", "Unused pages whose prompts can be found again", state.kept_pages);
    line("prompt_tokens_total", "counter", "Prompt tokens computed", state.prompt_tokens);
    line("cached_prompt_tokens_total", "counter", "Prompt tokens found in the cache", state.cached_tokens);
    line("generated_tokens_total", "counter", "Tokens generated", state.generated_tokens);
    line("preemptions_total", "counter", "Sequences that had to give up their pages", state.preemptions);
    line("steps_total", "counter", "Forward passes", state.steps);
    reply.send(200, "text/plain; version=0.0.4", text);
  }

  void answer(const HttpRequest& request, HttpReply& reply) {
    const std::string& path = request.path;
    const bool get = request.method == "GET", post = request.method == "POST";
    if (path == "/" && get) return reply.send(200, "text/html; charset=utf-8", kPage);
    if (path == "/health" && get) return reply.send(200, kJson, "{\"status\":\"ok\"}");
    if (!options.api_key.empty() && !equal_in_constant_time(request.authorization, "Bearer " + options.api_key)) {
      throw Refusal{401, "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"};
    }
    if (path == "/metrics" && get) return metrics(reply);
    if (path == "/v1/models" && get) return models_list(reply);
    if (path == "/tokenizer_info" && get) return tokenizer_info(reply);
    if (path == "/v1/completions" && post) return complete(request.body, /*is_chat=*/false, reply);
    if (path == "/v1/chat/completions" && post) return complete(request.body, /*is_chat=*/true, reply);
    if (path == "/tokenize" && post) return tokenize(request.body, reply);
    if (path == "/detokenize" && post) return detokenize(request.body, reply);
    for (const char* known : {"/health", "/metrics", "/v1/models", "/tokenizer_info", "/v1/completions",
                              "/v1/chat/completions", "/tokenize", "/detokenize"}) {
      if (path == known) throw Refusal{405, request.method.substr(0, 20) + " is not for " + path};
    }
    throw Refusal{404,
                  "there is nothing at this path; known: /, /v1/completions, /v1/chat/completions, /v1/models, "
                  "/health, /metrics, /tokenize, /detokenize, /tokenizer_info"};
  }
};

Service::Service(models::Llama& model, std::shared_ptr<const text::Tokenizer> tokenizer, const ServiceOptions& options)
    : impl_(std::make_unique<Impl>(model, std::move(tokenizer), options)) {}
Service::~Service() = default;

EngineState Service::state() const { return impl_->engine.state(); }

std::string Service::error_body(int status, const std::string& message) {
  const char* const type = status == 401   ? "authentication_error"
                           : status == 429 ? "rate_limit_error"
                           : status >= 500 ? "server_error"
                                           : "invalid_request_error";
  return sent({{"error", {{"message", message}, {"type", type}, {"param", nullptr}, {"code", status}}}});
}

void Service::handle(const HttpRequest& request, HttpReply& reply) {
  const auto refuse = [&](int status, const std::string& message) {
    reply.send(status, kJson, error_body(status, message));
  };
  try {
    impl_->answer(request, reply);
  } catch (const Refusal& refusal) {
    refuse(refusal.status, refusal.message);
  } catch (const Error& error) {  // the library's own words about what the client sent
    refuse(400, without_place(error.what()));
  } catch (const std::exception&) {
    refuse(500, "the server could not answer this request");
  }
}

}  // namespace moh::serve
