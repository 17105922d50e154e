// moh data: training data made ahead of training.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/command.h"
#include "cli/progress.h"
#include "moh/base/cores.h"
#include "moh/data/tokenize.h"

namespace moh::cli {
namespace {

struct Options {
  data::TokenizeOptions tokenize;
  std::string tokenizer;
  int workers = 0;
};

int tokenize(const Context& context, const Options& options) {
  const auto tokenizer = options.tokenizer.empty() ? text::bytes_tokenizer() : text::load_tokenizer(options.tokenizer);
  data::TokenizeOptions tokenize = options.tokenize;
  tokenize.workers = options.workers > 0 ? options.workers : available_cores();
  Progress progress("tokenize");
  const auto result = data::tokenize_documents(
      *tokenizer, options.tokenizer, tokenize, interrupted,
      [&](double done, std::int64_t tokens) { progress.update(done, fmt::format("{} tokens", tokens)); });
  progress.finish();
  context.emit({{"tokens", result.tokens}, {"documents", result.documents}, {"done", result.done}});
  if (!result.done) {
    context.say("interrupted; what is done is kept, the same command goes on");
    return kInterruptedStatus;
  }
  context.say(fmt::format("{}: {} tokens in {} documents", tokenize.out, result.tokens, result.documents));
  return 0;
}

const Registered registered{
    {"data", "make training data", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.require_subcommand(1);
       CLI::App* tokenize_app =
           app.add_subcommand("tokenize", "documents to a folder of token ids, mapped when training")->fallthrough();
       tokenize_app
           ->add_option("inputs", options->tokenize.inputs,
                        "text files (a document each), JSON lines (.jsonl, also .gz or .zst), folders of them")
           ->required();
       tokenize_app->add_option("--tokenizer", options->tokenizer, "folder with a tokenizer; without one, bytes");
       tokenize_app->add_option("--out", options->tokenize.out, "folder to make, or to go on with")->required();
       tokenize_app->add_option("--field", options->tokenize.field, "of a JSON line: its text")->capture_default_str();
       tokenize_app->add_option("--workers", options->workers, "threads; 0: one a core");
       return [options, &context] { return tokenize(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
