// moh tune: continue-tune a model, usually one that `moh convert` made from a dense checkpoint.
#include "cli/commands/language_training.h"
#include "cli/processes.h"

namespace moh::cli {
namespace {
const Registered registered{
    {"tune",
     "continue training a model folder, optionally distilling from a dense one",
     [](CLI::App& app, Context& context) {
       return with_processes(app, context, setup_language_training(app, context, /*from_preset=*/false));
     },
     {"train"}}};
}  // namespace
}  // namespace moh::cli
