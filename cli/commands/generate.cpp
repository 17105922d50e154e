// moh generate: text from a language model.
#include "moh/generate/generate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>

#include "cli/command.h"
#include "cli/model_kind.h"
#include "cli/run_time_heads.h"
#include "cli/stored_weights.h"
#include "moh/base/activity.h"
#include "moh/generate/end_tokens.h"
#include "moh/io/files.h"
#include "moh/text/chat_template.h"
#include "moh/text/text_stream.h"
#include "moh/text/tokenizer.h"

namespace moh::cli {
namespace {

struct Options {
  std::string model, prompt;
  std::string chat;  // a message or a file; "-": turns on the terminal
  bool chats = false;
  std::int64_t max_tokens = 128;
  std::vector<std::string> stop;
  generate::SamplingOptions sampling;
  bool ignore_eos = false;
  RunTimeHeads heads;
  StoredWeights weights;
};

struct Reply {
  std::string text;
  generate::GenerationResult result;
};

class Generator {
 public:
  Generator(const Context& context, const Options& options)
      : context_(context),
        options_(options),
        model_(models::Llama::load(options.model, context.weights_type(), models::read_as(context.read_as))),
        tokenizer_(text::load_tokenizer(options.model)) {
    model_.to(context.torch_device());
    options_.heads.apply(model_.mutable_config());
    options_.weights.apply(model_, options.model);
    options_.sampling.seed = context.seed;
    if (!options.ignore_eos) end_ids_ = generate::end_tokens(options.model, model_.config());
  }

  std::vector<std::int64_t> ids_of(const std::string& prompt, bool parse_special) const {
    const std::int64_t bos = model_.config().bos_token_id >= 0 ? model_.config().bos_token_id : tokenizer_->bos_id();
    return text::prompt_ids(*tokenizer_, prompt, bos, parse_special);
  }

  // Writes the text to standard output as it comes, but with --json. `drops_space`: it begins a text, and SentencePiece
  // marks the start of a text with a space of its own.
  Reply reply(const std::vector<std::int64_t>& prompt, bool drops_space) const {
    const std::int64_t context = model_.config().max_position_embeddings;
    const std::int64_t room = context - static_cast<std::int64_t>(prompt.size());
    MOH_CHECK(room > 0, "[generate] a prompt of ", prompt.size(), " tokens leaves no room in the model's context of ",
              context, "; shorten it");
    if (options_.max_tokens > room) fmt::print(stderr, "the model's context leaves room for {} tokens\n", room);
    Reply reply;
    text::TextStream stream(options_.stop, drops_space && tokenizer_->strips_leading_space());
    const auto show = [&](const std::string& part) {
      reply.text += part;
      if (context_.json || part.empty()) return;
      std::fwrite(part.data(), 1, part.size(), stdout);
      std::fflush(stdout);
    };
    std::optional<Interruptible> prefill(std::in_place, interrupted);  // before there is a reply to keep
    const auto on_token = [&](std::int64_t id) {
      prefill.reset();
      show(stream.push(tokenizer_->piece_bytes(id)));
      return !stream.stopped() && !interrupted;
    };
    reply.result =
        generate::generate(model_, prompt, std::min(options_.max_tokens, room), options_.sampling, end_ids_, on_token);
    show(stream.finish());
    return reply;
  }

 private:
  const Context& context_;
  Options options_;
  models::Llama model_;
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::vector<std::int64_t> end_ids_;
};

void report(const Context& context, const std::vector<std::int64_t>& prompt, const Reply& reply, bool chats) {
  const generate::GenerationResult& result = reply.result;
  const double steps = std::max<double>(0, static_cast<double>(result.ids.size()) - 1);
  const double rate = steps > 0 ? steps / result.decode_seconds : 0;
  Json line = Json::object();
  line["text"] = reply.text;
  line["tokens"] = result.ids.size();
  line["ids"] = result.ids;
  if (chats) line["prompt_ids"] = prompt;
  line["prompt_tokens_per_second"] = static_cast<double>(prompt.size()) / result.prompt_seconds;
  line["tokens_per_second"] = rate;
  line["active_heads"] = result.active_heads;
  context.emit(line);
  if (context.json) return;
  fmt::print("\n");
  fmt::print(stderr, "{} tokens, {:.1f} tokens/s, {:.1f} % of the heads active\n", result.ids.size(), rate,
             100 * result.active_heads);
}

// A conversation, as the model's own template writes it.
int run_chat(const Context& context, const Options& options) {
  MOH_CHECK(options.prompt.empty(), "[generate] give --prompt or --chat, not both");
  const auto source = text::find_chat_template(options.model);
  MOH_CHECK(
      source.has_value(), "[generate] ", options.model,
      " has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json): it is not a chat "
      "model; --prompt continues a text");
  const text::ChatTemplate chat(source->text, source->label);
  Json variables = Json{{"messages", Json::array()}};
  bool takes_turns = false;
  if (options.chat == "-") {
    MOH_CHECK(isatty(STDIN_FILENO) != 0, "[generate] --chat - needs a terminal to type at");
    takes_turns = true;
  } else if (options.chat.ends_with(".json") && std::filesystem::exists(options.chat)) {
    variables = text::read_conversation(io::read_file(options.chat, std::uint64_t{1} << 26), options.chat);
  } else {
    variables["messages"].push_back({{"role", "user"}, {"content", options.chat}});
  }
  variables["add_generation_prompt"] = true;
  if (!source->bos_token.empty()) variables["bos_token"] = source->bos_token;
  if (!source->eos_token.empty()) variables["eos_token"] = source->eos_token;
  if (!takes_turns) chat.render(variables);  // what it refuses is said before the model is read
  const Generator generator(context, options);
  for (;;) {
    if (takes_turns) {
      fmt::print(stderr, "> ");
      std::string message;
      if (!std::getline(std::cin, message) || interrupted) break;
      if (message.empty()) continue;
      variables["messages"].push_back({{"role", "user"}, {"content", message}});
    }
    const std::vector<std::int64_t> prompt = generator.ids_of(chat.render(variables), true);
    const Reply reply = generator.reply(prompt, false);
    report(context, prompt, reply, true);
    if (!takes_turns || interrupted) break;
    variables["messages"].push_back({{"role", "assistant"}, {"content", reply.text}});
  }
  return interrupted ? kInterruptedStatus : 0;
}

// But for the line end that `echo` and editors put last.
std::string standard_input() {
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

int run_generate(const Context& context, const Options& options) {
  for (const std::string& stop : options.stop) MOH_CHECK(!stop.empty(), "[generate] --stop must not be empty");
  refuse_other_kinds(options.model, "generate");
  if (options.chats) return run_chat(context, options);
  const std::string text = options.prompt == "-" ? standard_input() : options.prompt;
  const Generator generator(context, options);
  const std::vector<std::int64_t> prompt = generator.ids_of(text, false);
  if (!context.json) fmt::print("{}", text);
  report(context, prompt, generator.reply(prompt, text.empty()), false);
  return interrupted ? kInterruptedStatus : 0;
}

const Registered registered{
    {"generate", "continue a text", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("model", options->model, "model folder")->required();
       auto* text = app.add_option("text", options->prompt, "text to continue; or --prompt");
       app.add_option("--prompt", options->prompt, "text to continue; -: from standard input")->excludes(text);
       CLI::Option* chat =
           app.add_option("--chat", options->chat,
                          "a message to the model, or conversation.json: a list of messages ({\"role\": \"user\", "
                          "\"content\": \"...\"}), by the model's own template; -: turns on the terminal")
               ->excludes(text);
       app.add_option("--max-tokens", options->max_tokens, "new tokens at most (also limited by the model's context)");
       app.add_option("--temperature", options->sampling.temperature, "0: the most probable token each time");
       app.add_option("--top-k", options->sampling.top_k, "sample from this many most probable tokens; 0: all");
       app.add_option("--top-p", options->sampling.top_p, "sample from the smallest set of this probability");
       app.add_option("--stop", options->stop, "end before this text; may be given several times")
           ->allow_extra_args(false)
           ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
       app.add_flag("--ignore-eos", options->ignore_eos, "do not stop at an end token");
       options->heads.add_options(app, "--moh-top-k");
       options->weights.add_option(app);
       return [options, chat, &context] {
         options->chats = chat->count() > 0;
         return run_generate(context, *options);
       };
     }}};

}  // namespace
}  // namespace moh::cli
