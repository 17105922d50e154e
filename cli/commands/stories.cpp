// moh stories: text from the project's own grammar, whose exact entropy is known, to try training without any data.
#include "moh/data/stories.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/progress.h"

namespace moh::cli {
namespace {

struct Options {
  std::string out;
  std::int64_t count = 1000;
};

int stories(const Context& context, const Options& options) {
  end_at_once_when_interrupted();
  MOH_CHECK(options.count > 0, "[stories] --count must be positive, got ", options.count);
  const double nats = data::write_stories(options.out, options.count, context.seed);
  context.emit({{"stories", options.count}, {"nats", nats}, {"out", options.out}});
  context.say(fmt::format("wrote {}: {} stories, -ln p = {:.1f} nats ({:.3f} a story)", options.out,
                          with_commas(options.count), nats, nats / static_cast<double>(options.count)));
  return 0;
}

const Registered registered{
    {"stories", "write short stories of a known entropy, one a line", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("--out", options->out, "text file")->required();
       app.add_option("--count", options->count, "stories");
       return [options, &context] { return stories(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
