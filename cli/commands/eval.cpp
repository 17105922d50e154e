// moh eval: perplexity of a token stream; with --task, benchmarks (task_eval.h); or, with --generated, distances
// between pictures (image_eval.h).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "cli/command.h"
#include "cli/commands/image_eval.h"
#include "cli/commands/task_eval.h"
#include "cli/model_kind.h"
#include "cli/progress.h"
#include "cli/run_time_heads.h"
#include "cli/stored_weights.h"
#include "moh/base/error.h"
#include "moh/eval/perplexity.h"

namespace moh::cli {
namespace {

struct Options {
  std::string model, data;
  eval::PerplexityOptions perplexity;
  RunTimeHeads heads;
  StoredWeights weights;
  TaskEval tasks;
};

// How many targets an evaluation has.
double tokens_read(const eval::PerplexityOptions& options, std::int64_t stream, const models::LlamaConfig& config) {
  const std::int64_t window = options.sequence > 0 ? options.sequence : config.max_position_embeddings;
  const std::int64_t most = options.max_windows > 0 ? options.max_windows * window : stream - 1;
  return static_cast<double>(std::min(most, stream - 1));
}

int run_eval(const Context& context, const Options& options) {
  if (options.tasks.asked_for()) {
    return eval_tasks(context, options.model, options.data, options.heads, options.weights, options.tasks);
  }
  models::Llama model = models::Llama::load(options.model, context.weights_type(), models::read_as(context.read_as));
  model.to(context.torch_device());
  options.heads.apply(model.mutable_config());
  options.weights.apply(model, options.model);
  const auto tokenizer = text::load_tokenizer(options.model);
  const auto stream = data::TokenStream::open(options.data, tokenizer.get(), model.config().vocab_size);
  Progress progress("eval", "tokens", tokens_read(options.perplexity, stream.size(), model.config()));
  const auto start = std::chrono::steady_clock::now();
  const auto result = eval::perplexity(model, stream, options.perplexity, [&](double done) { progress.update(done); });
  progress.finish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Json line = Json::object();
  line["perplexity"] = result.perplexity;
  line["nll"] = result.nll;
  line["tokens"] = result.tokens;
  line["active_heads"] = result.active_heads;
  line["tokens_per_second"] = static_cast<double>(result.tokens) / seconds;
  context.emit(line);
  if (!context.json) {
    context.say(fmt::format("perplexity {:.4f} (nll {:.4f}) over {} tokens, {:.1f} % of the heads active, {}",
                            result.perplexity, result.nll, with_commas(result.tokens), 100 * result.active_heads,
                            format_rate(static_cast<double>(result.tokens) / seconds, "tokens")));
  }
  return 0;
}

const Registered registered{
    {"eval", "measure perplexity, run benchmarks, or tell how real generated pictures look",
     [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("model", options->model, "model folder");
       app.add_option(
           "--data", options->data,
           "text file, folder of *.txt, or .npy/.bin ids; a folder with one subfolder of pictures per class; with "
           "--task a folder of benchmark files");
       app.add_option("--sequence", options->perplexity.sequence, "context of a window; 0: the model's");
       app.add_option("--batch", options->perplexity.batch, "windows at a time");
       app.add_option("--max-windows", options->perplexity.max_windows, "0: all");
       options->heads.add_options(app, "--top-k,--moh-top-k");
       options->weights.add_option(app, {"auto", "ema", "model"},
                                   "; of a vision transformer: auto (averaged ones if they are there), ema, model");
       options->tasks.add_options(app);
       const Run pictures = setup_image_eval(app, context);
       app.callback([options, &app] {
         if (app.get_option("--generated")->count() > 0) return;
         for (const auto& [given, name] : {std::pair{&options->model, "model"}, std::pair{&options->data, "--data"}}) {
           if (given->empty()) throw CLI::RequiredError(name);
         }
       });
       std::vector<std::pair<const ModelKind*, ModelKind::Evaluation>> kinds;
       for (const ModelKind& kind : model_kinds()) {
         if (kind.eval != nullptr) kinds.emplace_back(&kind, kind.eval(app, context));
       }
       return [options, pictures, kinds, &app, &context] {
         if (app.get_option("--generated")->count() > 0) return pictures();
         const Interruptible interruptible(interrupted);
         if (const ModelKind* kind = kind_of(options->model)) {
           for (const auto& [each, evaluate] : kinds) {
             if (each == kind) return evaluate(options->model, options->data);
           }
           fail("[eval] ", options->model, " is ", kind->name, "; `moh ", kind->command, "` is for it");
         }
         for (const ModelKind& kind : model_kinds()) allow_none_of(app, kind.group, options->model, "a language model");
         return run_eval(context, *options);
       };
     }}};

}  // namespace
}  // namespace moh::cli
