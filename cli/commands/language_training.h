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
  double distill_weight = 1.0, distill_hidden = 0.0, activated = 0.0;
  double random_share_min = 0.0, random_share_max = 1.0;
  bool documents = false;
  std::int64_t sequence = 512, valid_windows = 0, loss_rows = 0;

  // What run.json holds, so that a resumed run needs no flag again.
  template <class V>
  void fields(V& visit) {
    visit("preset", preset, "configuration of a new model, see `moh info`");
    visit("model", model, "model folder");
    visit(
        "data", data,
        "text file, folder of *.txt, .npy/.bin token ids, a folder that `moh data tokenize` made, or a mix.toml of such");
    visit("valid", valid, "validation data of the same kinds");
    visit("out", out, "training folder");
    visit("sequence", sequence, "tokens per sequence");
    visit("tokenizer", tokenizer, "folder with tokenizer.model; without one, text is read as bytes");
    visit("distill", distill, "dense model folder to distil from (KL divergence on logits)");
    visit("distill_weight", distill_weight, "share of the distillation loss, the rest is cross-entropy");
    visit("distill_hidden", distill_hidden,
          "weight of the distance of hidden states from the teacher's, relative to their size; 0: logits alone");
    visit(
        "random_share_min", random_share_min,
        "every batch draws its share of active heads from here to random_share_max, so that one model serves all these "
        "shares; 0: the model's own share throughout");
    visit("random_share_max", random_share_max, "the largest of these shares");
    visit("activated", activated, "share of heads active, for a moh- preset (default 0.75)");
    visit("documents", documents, "attention stops where a document begins; for data of `moh data tokenize`");
    visit("loss_rows", loss_rows,
          "tokens whose logits are in memory at a time, each computed twice; 0: those of all, once");
    visit("valid_windows", valid_windows, "validation windows; 0: all");
  }
};

// Adds options to `app`; the result trains. `from_preset`: a new model (`train`), else an existing one (`tune`).
Run setup_language_training(CLI::App& app, Context& context, bool from_preset);

}  // namespace moh::cli
