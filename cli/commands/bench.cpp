// moh bench SUBJECT: speed beside a named rival in the same process, results checked first.
#include "bench/bench.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "bench/machine.h"
#include "bench/table.h"
#include "cli/command.h"
#include "cli/commands/bench_serving.h"
#include "moh/base/error.h"
#include "moh/io/files.h"

namespace moh::cli {
namespace {

struct BenchOptions {
  std::string subject, markdown;
  bool append = false, summary = false;
  bench::Grid grid;
  bench::Options run;
};

const bench::Subject& subject_of(const std::string& name) {
  for (const bench::Subject& subject : bench::subjects()) {
    if (subject.name == name) return subject;
  }
  MOH_CHECK(!name.empty(), "[bench] the subject is missing; see `moh bench --help`");
  fail("[bench] unknown subject `", name, "`");
}

// The command as it can be typed again, with the variables that choose instruction sets.
std::string command_with_environment(const std::string& command) {
  std::string text;
  for (const char* name : {"MOH_BACKEND", "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"}) {
    if (const char* value = std::getenv(name)) text += fmt::format("{}={} ", name, value);
  }
  return text + command;
}

void write_markdown(const Context& context, const BenchOptions& options, const bench::Subject& subject,
                    const std::vector<Json>& rows) {
  const bool append = options.append && std::filesystem::exists(options.markdown);
  std::string text =
      bench::markdown_report(command_with_environment(context.command), bench::json_of(bench::machine_description()),
                             subject.columns, rows, /*with_title=*/!append);
  if (append) text = io::read_file(options.markdown, std::int64_t{1} << 24) + text;
  io::write_file(options.markdown, text);
  context.say("wrote " + options.markdown);
}

int run_bench(const Context& context, BenchOptions options) {
  const bench::Subject& subject = subject_of(options.subject);
  options.run.seed = context.seed;
  options.run.device = context.torch_device();
  const auto& on_gpus = bench::operator_subjects();
  MOH_CHECK(options.run.device.is_cpu() ||
                std::any_of(on_gpus.begin(), on_gpus.end(),
                            [&](const auto& each) { return subject.name == std::string(each.name); }),
            "[bench] ", options.subject, " runs on the CPU alone; with --device cuda: ", on_gpus[0].name, ", ",
            on_gpus[1].name);
  std::vector<Json> rows;
  for (const bench::Case& c : bench::make_cases(subject, options.grid)) {
    if (interrupted) break;
    at::set_num_threads(static_cast<int>(c.threads));
    rows.push_back(bench::json_of(subject.run(c, options.run)));
    context.emit(rows.back());
    if (rows.size() == 1) context.say(bench::text_header(subject.columns));
    context.say(bench::text_row(subject.columns, rows.back()));
  }
  if (rows.empty()) return kInterruptedStatus;
  const auto summaries = bench::summarise(rows);
  const auto columns = bench::summary_columns(summaries);
  context.say("\n" + bench::text_header(columns));
  for (Json summary : summaries) {
    context.say(bench::text_row(columns, summary));
    summary["subject"] = "summary of " + options.subject;
    if (options.summary) context.emit(summary);
  }
  if (!options.markdown.empty()) write_markdown(context, options, subject, rows);
  return interrupted ? kInterruptedStatus : 0;
}

// "heads 32; tokens 256,1024; ..." for the help text.
std::string defaults_of(bench::Grid grid) {
  std::string text;
  auto visit = [&](std::string name, const auto& values, const char*) {
    std::replace(name.begin(), name.end(), '_', '-');
    if (values.empty() || name == "threads" || name == "kv-heads") return;
    text += fmt::format(" --{} {}", name, fmt::join(values, ","));
  };
  grid.fields(visit);
  return text;
}

std::string footer() {
  std::string text = "Subjects, their rivals and defaults:";
  for (const bench::Subject& subject : bench::subjects()) {
    text += fmt::format("\n  {:<10} {}\n            {}", subject.name, subject.summary, defaults_of(subject.defaults));
  }
  return text +
         "\nLists make grids. To force an instruction set on both sides, say AVX2:\n"
         "  MOH_BACKEND=avx2 ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 moh bench ...";
}

const Registered registered{
    {"bench", "measure speed beside a rival in the same process", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<BenchOptions>();
       std::vector<std::string> names;
       for (const bench::Subject& subject : bench::subjects()) names.emplace_back(subject.name);
       app.add_option("subject", options->subject, fmt::format("{}; or serve, generate", fmt::join(names, ", ")))
           ->check(CLI::IsMember(names));
       auto visit = [&](std::string name, auto& values, const char* help) {
         std::replace(name.begin(), name.end(), '_', '-');
         app.add_option("--" + name + (name == "tokens" ? ",--cache" : ""), values, help)
             ->delimiter(',')
             ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
       };
       options->grid.fields(visit);
       app.add_option("--seconds", options->run.seconds, "time for each case");
       app.add_option("--pairs", options->run.pairs, "timed pairs of runs for each case at least");
       app.add_flag("--summary", options->summary, "with --json, a line for each geometric mean at the end");
       app.add_option("--markdown", options->markdown, "write a file for bench/results");
       app.add_flag("--append", options->append,
                    "add to the file of --markdown if there is one, instead of replacing it");
       app.footer(footer());
       const auto serving = add_serving_subjects(app, context);
       return [options, serving, &context] {
         if (const auto run = serving()) return (*run)();
         return run_bench(context, *options);
       };
     }}};

}  // namespace
}  // namespace moh::cli
