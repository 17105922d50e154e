// moh eval --generated F --real F: how far generated pictures are from real ones, from feature files.
#pragma once

#include "cli/command.h"

namespace moh::cli {

// Adds the options of the image metrics to `app`. The result measures; it is to be run when --generated was given.
Run setup_image_eval(CLI::App& app, Context& context);

}  // namespace moh::cli
