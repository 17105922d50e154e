#include "cli/commands/bench_serving.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>

#include "bench/generation.h"
#include "bench/serving.h"
#include "cli/commands/training_kind.h"
#include "cli/progress.h"
#include "cli/stored_weights.h"
#include "moh/base/error.h"
#include "moh/models/llama_config_json.h"
#include "moh/serve/service.h"

namespace moh::cli {
namespace {

struct ServeOptions {
  std::string model;
  double cache_gib = 1.0;
  std::vector<std::int64_t> prompt_tokens = {64, 512}, max_tokens = {16, 128};
  std::int64_t max_sequences = 64;
  StoredWeights weights;
  bench::ServingOptions run;
};

struct GenerateOptions {
  std::string model;
  StoredWeights weights;
  bench::GenerationOptions run;
};

// A folder, or a preset with random weights.
models::Llama open_model(const Context& context, const std::string& model) {
  const auto presets = models::llama_presets();
  if (std::find(presets.begin(), presets.end(), model) == presets.end()) {
    return models::Llama::load(model, context.weights_type(), models::read_as(context.read_as));
  }
  const Json described = models::llama_config_json(models::llama_preset(model));
  const auto config = models::parse_llama_config(with_sections(described, context.sections, model), "model");
  models::Llama random = models::Llama::initialize(config, context.seed);
  const auto dtype = context.weights_type();
  if (!dtype) return random;
  io::NamedTensors tensors;
  for (const auto& [name, tensor] : random.parameters()) tensors.emplace_back(name, tensor.to(*dtype));
  return {config, std::move(tensors)};
}

// Nothing for a preset.
std::string folder_of(const std::string& model) { return std::filesystem::exists(model) ? model : ""; }

Json described(const std::string& model, const models::Llama& loaded, const StoredWeights& weights) {
  return {{"model", model},
          {"dtype", c10::toString(loaded.dtype())},
          {"weights", weights.choice},
          {"threads", at::get_num_threads()}};
}

// This process's memory that is not on disk.
double resident_mib() {
  std::ifstream file("/proc/self/statm");
  double all = 0, resident = 0;
  file >> all >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1024 * 1024);
}

std::string spread(const Json& times) {
  if (times.is_null()) return "-";
  return fmt::format("{:.1f} | {:.1f} | {:.1f} | {:.1f}", times["mean"].get<double>(), times["p50"].get<double>(),
                     times["p90"].get<double>(), times["p99"].get<double>());
}

int run_serve(const Context& context, ServeOptions& options) {
  models::Llama model = open_model(context, options.model);
  options.weights.apply(model, folder_of(options.model));
  const models::LlamaConfig config = model.config();
  serve::ServiceOptions service_options;
  service_options.name = options.model;
  service_options.folder = options.model;
  service_options.waiting = options.run.requests;
  service_options.engine.max_sequences = options.max_sequences;
  const double bytes_a_token = static_cast<double>(2 * config.num_hidden_layers * config.num_key_value_heads *
                                                   config.head_dim * c10::elementSize(model.dtype()));
  service_options.engine.cache_tokens =
      static_cast<std::int64_t>(options.cache_gib * 1024 * 1024 * 1024 / bytes_a_token);
  Json line = described(options.model, model, options.weights);
  serve::Service service(model, text::bytes_tokenizer(), service_options);  // prompts are ids, texts are not looked at
  serve::HttpServer server(
      options.run.host, 0, {}, [&](const auto& request, auto& reply) { service.handle(request, reply); },
      &serve::Service::error_body);
  std::atomic<bool> stop{false};
  std::thread serving([&] { server.run(stop, 5); });
  options.run.model = options.model;
  options.run.port = server.port();
  options.run.vocabulary = config.vocab_size;
  options.run.seed = context.seed;
  const auto ends = [](const std::vector<std::int64_t>& range) { return std::pair(range.front(), range.back()); };
  std::tie(options.run.shortest_prompt, options.run.longest_prompt) = ends(options.prompt_tokens);
  std::tie(options.run.shortest_reply, options.run.longest_reply) = ends(options.max_tokens);
  Json result;
  const std::int64_t warm = options.run.requests / 10;
  double memory_warm = 0;
  try {
    Progress progress("serve");
    result = bench::time_serving(options.run, interrupted, [&](std::int64_t done) {
      if (done == warm) memory_warm = resident_mib();
      progress.update(static_cast<double>(done) / static_cast<double>(options.run.requests));
    });
  } catch (...) {
    stop = true;
    serving.join();
    throw;
  }
  stop = true;
  serving.join();
  line.update(result);
  line["activated"] = options.run.activated.value_or(config.activated_share());
  line["preemptions"] = service.state().preemptions;
  line["resident_mib_warm"] = memory_warm;  // after a tenth of the requests
  line["resident_mib_end"] = resident_mib();
  line["pages_used_at_end"] = service.state().used_pages;
  context.emit(line);
  context.say(fmt::format(
      "{} requests in {:.1f} s: {} whole, {} hung up, {} errors; {:.2f} requests/s, {:.1f} tokens/s generated, "
      "{:.1f} tokens/s of prompts",
      options.run.requests, result["seconds"].get<double>(), result["completed"].get<std::int64_t>(),
      result["hung_up"].get<std::int64_t>(), result["errors"].get<std::int64_t>(),
      result["requests_per_second"].get<double>(), result["tokens_per_second"].get<double>(),
      result["prompt_tokens"].get<double>() / result["seconds"].get<double>()));
  context.say("| ms | mean | p50 | p90 | p99 |\n|---|---|---|---|---|");
  context.say("| to the first token | " + spread(result["ttft_ms"]) + " |");
  context.say("| per token after it | " + spread(result["time_per_token_ms"]) + " |");
  context.say("| whole reply | " + spread(result["request_ms"]) + " |");
  if (result.contains("first_error")) context.say("the first error: " + result["first_error"].get<std::string>());
  if (options.run.verify) {
    context.say(fmt::format("asked for again, alone: {} replies, {} different", result["verified"].get<std::int64_t>(),
                            result["different"].get<std::int64_t>()));
    MOH_CHECK(result["different"] == 0, "[bench] replies depended on what else was being served");
  }
  return interrupted ? kInterruptedStatus : 0;
}

int run_generate(const Context& context, GenerateOptions& options) {
  models::Llama model = open_model(context, options.model);
  options.weights.apply(model, folder_of(options.model));
  const Json common = described(options.model, model, options.weights);
  options.run.seed = context.seed;
  context.say(
      "| model | type | weights | threads | heads | test | depth | tokens/s |\n|---|---|---|---|---|---|---|---|");
  bench::time_generation(model, options.run, [&](const Json& row) {
    Json line = common;
    line.update(row);
    context.emit(line);
    context.say(fmt::format("| {} | {} | {} | {} | {:.1f} % | {} | {} | {:.2f} ± {:.2f} |", options.model,
                            common["dtype"].get<std::string>(), options.weights.choice, common["threads"].get<int>(),
                            100 * row["activated"].get<double>(), row["test"].get<std::string>(),
                            row["depth"].get<std::int64_t>(), row["tokens_per_second"].get<double>(),
                            row["deviation"].get<double>()));
    return !interrupted.load();
  });
  return interrupted ? kInterruptedStatus : 0;
}

constexpr const char* kModelHelp = "model folder, or a preset with random weights (see `moh info`)";

}  // namespace

std::function<std::optional<Run>()> add_serving_subjects(CLI::App& bench, Context& context) {
  auto serve = std::make_shared<ServeOptions>();
  auto* server =
      bench.add_subcommand("serve", "a server and its clients: time to the first token, per token, throughput");
  server->add_option("model", serve->model, kModelHelp)->required();
  server->add_option("--requests", serve->run.requests, "requests in all");
  server->add_option("--concurrency", serve->run.concurrency, "clients at the same time");
  server->add_option("--rate", serve->run.rate,
                     "requests a second, at random times; 0: each client asks as soon as it can");
  server->add_option("--prompt-tokens", serve->prompt_tokens, "shortest,longest prompt")
      ->delimiter(',')
      ->expected(1, 2);
  server->add_option("--max-tokens", serve->max_tokens, "shortest,longest reply")->delimiter(',')->expected(1, 2);
  server->add_option("--activated", serve->run.activated, "share of the heads (MoH models)");
  server->add_option("--hang-up", serve->run.hang_up, "share of the clients that hang up in the middle");
  server->add_flag("--verify", serve->run.verify, "ask for every reply once more, alone: it must be the same");
  server->add_option("--max-sequences", serve->max_sequences, "computed at the same time")->check(CLI::PositiveNumber);
  server->add_option("--cache-gib", serve->cache_gib, "memory of the KV cache")->check(CLI::PositiveNumber);

  auto generate = std::make_shared<GenerateOptions>();
  auto* writer =
      bench.add_subcommand("generate", "tokens a second of one sequence, in llama-bench's rows (pp512, tg128)");
  writer->add_option("model", generate->model, kModelHelp)->required();
  writer->add_option("--prompt-tokens", generate->run.prompts, "lengths of the prompts, pp N")->delimiter(',');
  writer->add_option("--max-tokens", generate->run.generated, "tokens to generate, tg N")->delimiter(',');
  writer->add_option("--depth", generate->run.depths, "tokens in the cache before")->delimiter(',');
  writer->add_option("--repetitions", generate->run.repetitions, "runs of each test");
  writer->add_option("--activated", generate->run.activated, "share of the heads (MoH models)");

  serve->weights.add_option(*server);
  generate->weights.add_option(*writer);
  for (CLI::App* each : {server, writer}) {
    each->fallthrough();  // common options may come after; but these are lists for the other subjects
    each->add_option("--threads", context.threads, "CPU threads; 0: all cores");
    each->add_option("--dtype", context.dtype, "fp32, bf16 or fp16; auto: as the checkpoint has it");
  }
  bench.require_subcommand(0, 1);
  return [server, writer, serve, generate, &context]() -> std::optional<Run> {
    if (server->parsed()) return [serve, &context] { return run_serve(context, *serve); };
    if (writer->parsed()) return [generate, &context] { return run_generate(context, *generate); };
    return std::nullopt;
  };
}

}  // namespace moh::cli
