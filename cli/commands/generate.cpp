// moh generate: text from a language model.
#include "moh/generate/generate.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/run_time_heads.h"
#include "moh/generate/end_tokens.h"
#include "moh/text/tokenizer.h"
#include "moh/text/utf8.h"

namespace moh::cli {
namespace {

struct Options {
  std::string model, prompt;
  std::int64_t max_tokens = 128;
  std::vector<std::string> stop;
  generate::SamplingOptions sampling;
  bool ignore_eos = false;
  RunTimeHeads heads;
};

// The first place in `text` where a stop string begins, or npos.
std::size_t find_stop(const std::string& text, const std::vector<std::string>& stops) {
  std::size_t first = std::string::npos;
  for (const std::string& stop : stops) first = std::min(first, text.find(stop));
  return first;
}

int run_generate(const Context& context, Options options) {
  models::Llama model = models::Llama::load(options.model, context.weights_type(), models::read_as(context.read_as));
  model.to(context.torch_device());
  options.heads.apply(model.mutable_config());
  const auto tokenizer = text::load_tokenizer(options.model);
  options.sampling.seed = context.seed;
  std::vector<std::int64_t> prompt;
  // Without a tokenizer file only the model knows whether it has a BOS token.
  const bool adds_bos = tokenizer->kind() == "bytes" || tokenizer->adds_bos();
  const std::int64_t bos = model.config().bos_token_id >= 0 ? model.config().bos_token_id : tokenizer->bos_id();
  if (adds_bos && bos >= 0) prompt.push_back(bos);
  for (const std::int64_t id : tokenizer->encode(options.prompt)) prompt.push_back(id);
  const std::int64_t room = model.config().max_position_embeddings - static_cast<std::int64_t>(prompt.size());
  MOH_CHECK(room > 0, "[generate] a prompt of ", prompt.size(), " tokens leaves no room in the model's context of ",
            model.config().max_position_embeddings, "; shorten it");
  if (options.max_tokens > room) {
    options.max_tokens = room;
    fmt::print(stderr, "the model's context leaves room for {} tokens\n", room);
  }
  for (const std::string& stop : options.stop) MOH_CHECK(!stop.empty(), "[generate] --stop must not be empty");

  // SentencePiece marks the start of the text with a space of its own.
  const bool drops_space = tokenizer->strips_leading_space() && options.prompt.empty();
  std::string text;
  text::Utf8Stream characters;  // a token may end inside a character
  bool at_start = true, stopped = false;
  std::size_t shown = 0;
  const bool streams = !context.json;
  if (streams) fmt::print("{}", options.prompt);
  const auto show = [&](std::size_t end) {
    if (streams && end > shown) {
      std::fwrite(text.data() + shown, 1, end - shown, stdout);
      std::fflush(stdout);
      shown = end;
    }
  };
  std::size_t longest_stop = 0;
  for (const std::string& stop : options.stop) longest_stop = std::max(longest_stop, stop.size());
  const auto on_token = [&](std::int64_t id) {
    std::string piece = tokenizer->piece_bytes(id);
    if (at_start && drops_space && piece.starts_with(' ')) piece.erase(0, 1);
    at_start = at_start && piece.empty();
    text += characters.push(piece);
    const std::size_t stop = find_stop(text, options.stop);
    if (stop != std::string::npos) {
      text.resize(stop);
      stopped = true;
      return false;
    }
    // What may be the beginning of a stop string is held back.
    show(text.size() - std::min(text.size(), longest_stop > 0 ? longest_stop - 1 : 0));
    return !interrupted;
  };
  const std::vector<std::int64_t> end_ids =
      options.ignore_eos ? std::vector<std::int64_t>{} : generate::end_tokens(options.model, model.config());
  const auto result = generate::generate(model, prompt, options.max_tokens, options.sampling, end_ids, on_token);
  if (!stopped) text += characters.finish();
  show(text.size());

  const double steps = std::max<double>(0, static_cast<double>(result.ids.size()) - 1);
  const double prompt_rate = static_cast<double>(prompt.size()) / result.prompt_seconds;
  const double rate = steps > 0 ? steps / result.decode_seconds : 0;
  Json line = Json::object();
  line["text"] = text;
  line["tokens"] = result.ids.size();
  line["ids"] = result.ids;
  line["prompt_tokens_per_second"] = prompt_rate;
  line["tokens_per_second"] = rate;
  line["active_heads"] = result.active_heads;
  context.emit(line);
  if (streams) {
    fmt::print("\n");
    fmt::print(stderr, "{} tokens, {:.1f} tokens/s, {:.1f} % of the heads active\n", result.ids.size(), rate,
               100 * result.active_heads);
  }
  return interrupted ? kInterruptedStatus : 0;
}

const Registered registered{
    {"generate", "continue a text", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("model", options->model, "model folder")->required();
       app.add_option("--prompt", options->prompt, "text to continue");
       app.add_option("--max-tokens", options->max_tokens, "new tokens at most (also limited by the model's context)");
       app.add_option("--temperature", options->sampling.temperature, "0: the most probable token each time");
       app.add_option("--top-k", options->sampling.top_k, "sample from this many most probable tokens; 0: all");
       app.add_option("--top-p", options->sampling.top_p, "sample from the smallest set of this probability");
       app.add_option("--stop", options->stop, "end before this text; may be given several times")
           ->allow_extra_args(false)
           ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
       app.add_flag("--ignore-eos", options->ignore_eos, "do not stop at an end token");
       options->heads.add_options(app, "--moh-top-k");
       return [options, &context] { return run_generate(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
