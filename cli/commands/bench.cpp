// moh bench SUBJECT: speed beside a named rival in the same process, results checked first.
#include "bench/bench.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>

#include "bench/machine.h"
#include "bench/table.h"
#include "cli/bench_watch.h"
#include "cli/command.h"
#include "cli/commands/bench_serving.h"
#include "cli/progress.h"
#include "moh/base/activity.h"
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
                    const std::vector<Json>& rows, const std::string& warning) {
  const bool append = options.append && std::filesystem::exists(options.markdown);
  std::string text =
      bench::markdown_report(command_with_environment(context.command), bench::json_of(bench::machine_description()),
                             subject.columns, rows, /*with_title=*/!append);
  if (!warning.empty()) text += "\n" + warning + "\n";
  if (options.markdown == "-") {
    fmt::print("{}", text);
    return;
  }
  if (append) text = io::read_file(options.markdown, std::int64_t{1} << 24) + text;
  io::write_file(options.markdown, text);
  context.say("wrote " + options.markdown);
}

// What a reader of the figures must know; empty: the machine was quiet.
std::string disturbance(const BenchWatch& watch, double other_cpus) {
  std::string text;
  if (other_cpus > 0) {
    text = fmt::format("* Other programs used up to {:.1f} CPUs meanwhile: these figures are not the machine's own.",
                       other_cpus);
  }
  const double reads = watch.bandwidth_swing(), products = watch.product_swing();
  if (reads > kSwingLimit || products > kSwingLimit) {
    text += fmt::format(
        "{}Within the run the memory bandwidth swung by a factor of {:.2f}, the rate of a matrix product by "
        "{:.2f}: repeat it on a quiet machine.",
        text.empty() ? "" : "\n", reads, products);
  }
  return text;
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
  const auto say = [&](const std::string& text) {  // standard output may be the Markdown's
    if (options.markdown != "-") return context.say(text);
    clear_progress();
    fmt::print(stderr, "{}\n", text);
  };
  std::vector<Json> rows;
  BenchWatch watch;
  int most_threads = 1;
  double most_others = 0;
  const auto cases = bench::make_cases(subject, options.grid);
  Progress progress("bench");
  for (const bench::Case& c : cases) {
    if (interrupted) break;
    progress.update(static_cast<double>(rows.size()) / static_cast<double>(cases.size()),
                    fmt::format("case {} of {}", rows.size() + 1, cases.size()));
    const int threads = static_cast<int>(c.threads);
    at::set_num_threads(threads);
    if (threads >= most_threads) watch.probe();
    most_threads = std::max(most_threads, threads);
    watch.begin();
    try {
      const Interruptible interruptible(interrupted);
      rows.push_back(bench::json_of(subject.run(c, options.run)));
    } catch (const Interrupted&) {
      break;
    }
    const double others = options.run.device.is_cpu() ? watch.end() : 0;
    const bool is_disturbed = watch.disturbs(others, threads);
    rows.back()["other_cpus"] = others;
    rows.back()["disturbed"] = is_disturbed;
    if (is_disturbed) most_others = std::max(most_others, others);
    context.emit(rows.back());
    if (rows.size() == 1) say(bench::text_header(subject.columns));
    say(bench::text_row(subject.columns, rows.back()) + (is_disturbed ? " *" : ""));
  }
  progress.finish();
  if (rows.empty()) return kInterruptedStatus;
  watch.probe();
  const std::string warning = options.run.device.is_cpu() ? disturbance(watch, most_others) : "";
  const auto summaries = bench::summarise(rows);
  const auto columns = bench::summary_columns(summaries);
  say("\n" + bench::text_header(columns));
  for (Json summary : summaries) {
    say(bench::text_row(columns, summary) + (most_others > 0 ? " *" : ""));
    summary["subject"] = "summary of " + options.subject;
    if (options.summary) context.emit(summary);
  }
  if (!warning.empty()) say("\n" + warning);
  if (!options.markdown.empty()) write_markdown(context, options, subject, rows, warning);
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

// What an axis of words may be; empty: numbers, or words that the subject knows.
std::vector<std::string> words_of_axis(const std::string& name) {
  const std::map<std::string, std::vector<std::string>> axes = {
      {"dtype", {"fp32", "bf16", "fp16"}}, {"direction", {"forward", "backward", "both"}},
      {"router", {"two-stage", "norm"}},   {"select", {"head", "kv-group"}},
      {"layout", {"head", "token"}},       {"causal", {"yes", "no"}}};
  const auto found = axes.find(name);
  return found == axes.end() ? std::vector<std::string>{} : found->second;
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
         auto* option = app.add_option("--" + name + (name == "tokens" ? ",--cache" : ""), values, help)
                            ->delimiter(',')
                            ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
         if (const auto words = words_of_axis(name); !words.empty()) option->check(CLI::IsMember(words));
       };
       options->grid.fields(visit);
       app.add_option("--seconds", options->run.seconds, "time for each case");
       app.add_option("--pairs", options->run.pairs, "timed pairs of runs for each case at least");
       app.add_flag("--summary", options->summary, "with --json, a line for each geometric mean at the end");
       app.add_option("--markdown", options->markdown,
                      "write a file for bench/results; -: to standard output, the table to standard error");
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
