// moh train: a language model from scratch, dense or MoH, by the name of a preset.
#include "cli/commands/language_training.h"

namespace moh::cli {
namespace {
const Registered registered{{"train", "train a new model from scratch", [](CLI::App& app, Context& context) {
                               return setup_language_training(app, context, /*from_preset=*/true);
                             }}};
}  // namespace
}  // namespace moh::cli
