// What `train` and `tune` share: options, run.json, the loop with progress and Ctrl-C.
#pragma once

#include <optional>
#include <string>

#include "cli/command.h"
#include "moh/models/llama.h"
#include "moh/train/trainer.h"

namespace moh::cli {

struct LanguageRun {
  std::string preset, model;  // `train` takes a preset, `tune` a model folder
  std::string data, valid, out, tokenizer, distill;
  double distill_weight = 1.0, activated = 0.0;
  std::int64_t valid_windows = 0;

  // What run.json holds, so that a resumed run needs no flag again.
  template <class V>
  void fields(V& visit) {
    visit("preset", preset, "configuration of a new model, see `moh info`");
    visit("model", model, "model folder");
    visit("data", data, "text file, folder of *.txt, or .npy/.bin token ids");
    visit("valid", valid, "validation data of the same kinds");
    visit("out", out, "training folder");
    visit("tokenizer", tokenizer, "folder with tokenizer.model; without one, text is read as bytes");
    visit("distill", distill, "dense model folder to distil from (KL divergence on logits)");
    visit("distill_weight", distill_weight, "share of the distillation loss, the rest is cross-entropy");
    visit("activated", activated, "share of heads active, for a moh- preset (default 0.75)");
    visit("valid_windows", valid_windows, "validation windows; 0: all");
  }
};

// Adds options to `app`; the result trains. `from_preset`: a new model (`train`), else an existing one (`tune`).
Run setup_language_training(CLI::App& app, Context& context, bool from_preset);

}  // namespace moh::cli
