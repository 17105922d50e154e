// Kinds of models beside language models, and what each does for the commands that take any kind. A kind registers
// itself, so that no command lists them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/command.h"

namespace moh::cli {

struct ModelKind {
  const char* name;                                // as errors call it: "a vision transformer"
  const char* group;                               // of its own options in --help
  bool (*is_folder)(const std::string& path);      // by its config.json
  bool (*is_checkpoint)(const std::string& path);  // an authors' file, by its tensors
  std::vector<std::string> (*presets)();
  const char* command;  // what it is for: `moh generate` points there

  // moh convert IN OUT: a checkpoint, or a folder that is one of these, becomes a model folder.
  struct Conversion {
    std::string in, out, preset, weights;
  };
  int (*convert)(const Context& context, const Conversion& conversion);

  // moh inspect MODEL|PRESET [--data FOLDER] [--html FILE]
  struct Inspection {
    std::string model, data, html;
  };
  int (*inspect)(const Context& context, const Inspection& inspection);

  // moh eval: adds the kind's own options, in a group called `name`, and returns what evaluates; null: no such thing.
  using Evaluation = std::function<int(const std::string& model, const std::string& data)>;
  Evaluation (*eval)(CLI::App& app, Context& context);
};

std::vector<ModelKind>& model_kinds();
struct RegisteredModelKind {
  explicit RegisteredModelKind(ModelKind kind) { model_kinds().push_back(kind); }
};

// The kind of a model folder, a checkpoint file or a preset; nullptr: of none of them, so it is a language model's.
const ModelKind* kind_of(const std::string& model);

// "moh-vit" folder given to a command for language models. `command`: "generate".
void refuse_other_kinds(const std::string& model, const char* command);

// Errors for options that were given and that `model`, being what it is, has no use for: all but these, those of
// `group`, positional arguments and the options that every command has.
void allow_only(const CLI::App& app, const std::vector<std::string>& options, const std::string& group,
                const std::string& model, const char* kind);
// The same for all options of a group.
void allow_none_of(const CLI::App& app, const std::string& group, const std::string& model, const char* kind);

}  // namespace moh::cli
