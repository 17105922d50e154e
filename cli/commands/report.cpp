// moh report: a self-contained HTML page from a JSON description of tables, curves and pictures (cli/report/report.h).
#include "cli/report/report.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "moh/io/files.h"

namespace moh::cli {
namespace {

struct Options {
  std::string in, out = "report.html";
};

const Registered registered{
    {"report", "render report.json as one HTML file", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("in", options->in, "report.json")->required();
       app.add_option("--out", options->out, "HTML file");
       return [options, &context] {
         const Json report = parse_json(io::read_file(options->in, 64 << 20), options->in);
         io::write_file(options->out, render_report(report));
         context.emit({{"out", options->out}});
         context.say("wrote " + options->out);
         return 0;
       };
     }}};

}  // namespace
}  // namespace moh::cli
