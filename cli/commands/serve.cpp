// moh serve: a language model behind an OpenAI-compatible HTTP server.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "cli/command.h"
#include "cli/model_kind.h"
#include "cli/run_time_heads.h"
#include "cli/stored_weights.h"
#include "moh/base/activity.h"
#include "moh/serve/service.h"

namespace moh::cli {
namespace {

struct Options {
  std::string model, host = "127.0.0.1", api_key;
  int port = 8080, drain_seconds = 20;
  double cache_gib = 1.0;
  serve::ServiceOptions service;
  RunTimeHeads heads;
  StoredWeights weights;
};

// Tokens whose keys and values fit into so much memory.
std::int64_t cache_tokens(const models::Llama& model, double gib) {
  const models::LlamaConfig& config = model.config();
  const std::int64_t numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
  const double bytes = static_cast<double>(numbers) * static_cast<double>(c10::elementSize(model.dtype()));
  const auto tokens = static_cast<std::int64_t>(gib * 1024 * 1024 * 1024 / bytes);
  MOH_CHECK(tokens >= serve::kPageTokens, "[serve] --cache-gib ", gib, " has room for ", tokens,
            " tokens; give more, at least for ", serve::kPageTokens);
  return tokens;
}

std::string name_of_folder(const std::string& folder) {
  const auto path = std::filesystem::absolute(folder).lexically_normal();
  return (path.has_filename() ? path.filename() : path.parent_path().filename()).string();
}

int run_serve(const Context& context, Options& options) {
  MOH_CHECK(context.torch_device().is_cpu(), "[serve] the server runs models on the CPU alone; leave --device out");
  MOH_CHECK(options.cache_gib > 0 && options.cache_gib < 1e6, "[serve] --cache-gib must be positive, got ",
            options.cache_gib);
  refuse_other_kinds(options.model, "serve");
  std::optional<Interruptible> preparing(std::in_place, interrupted);
  models::Llama model = models::Llama::load(options.model, context.weights_type(), models::read_as(context.read_as));
  options.heads.apply(model.mutable_config());
  options.weights.apply(model, options.model);
  options.service.folder = options.model;
  options.service.name = name_of_folder(options.model);
  options.service.api_key = options.api_key;
  options.service.engine.cache_tokens = cache_tokens(model, options.cache_gib);
  serve::Service service(model, text::load_tokenizer(options.model), options.service);
  serve::HttpServer server(
      options.host, options.port, {},
      [&](const serve::HttpRequest& request, serve::HttpReply& reply) { service.handle(request, reply); },
      &serve::Service::error_body);
  const std::string address = fmt::format("http://{}:{}", options.host, server.port());
  Json line = Json::object();
  line["listening"] = address;
  line["model"] = options.service.name;
  line["cache_tokens"] = options.service.engine.cache_tokens;
  context.emit(line);
  context.say(fmt::format("{} on {}/v1, cache for {} tokens; Ctrl-C ends it", options.service.name, address,
                          options.service.engine.cache_tokens));
  preparing.reset();
  server.run(interrupted, options.drain_seconds);
  return 0;
}

const Registered registered{
    {"serve", "answer OpenAI's completions and chat completions over HTTP", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       auto& engine = options->service.engine;
       app.add_option("model", options->model, "model folder")->required();
       app.add_option("--host", options->host, "address to listen on; 0.0.0.0: all");
       app.add_option("--port", options->port, "0: a free one")->check(CLI::Range(0, 65535));
       app.add_option("--api-key", options->api_key, "asked for in every request but /health; empty: none");
       app.add_option("--max-sequences", engine.max_sequences, "computed at the same time; more wait")
           ->check(CLI::PositiveNumber);
       app.add_option("--max-waiting", options->service.waiting, "requests that wait; more are told 429")
           ->check(CLI::NonNegativeNumber);
       app.add_option("--step-tokens", engine.step_tokens, "tokens of one forward pass at most")
           ->check(CLI::PositiveNumber);
       app.add_option("--cache-gib", options->cache_gib, "memory of the KV cache");
       app.add_option("--drain-seconds", options->drain_seconds, "for running replies after Ctrl-C or SIGTERM")
           ->check(CLI::NonNegativeNumber);
       options->heads.add_options(app, "--top-k");
       options->weights.add_option(app);
       return [options, &context] { return run_serve(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
