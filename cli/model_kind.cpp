#include "cli/model_kind.h"

#include <algorithm>
#include <exception>
#include <filesystem>

#include "moh/base/error.h"

namespace moh::cli {

std::vector<ModelKind>& model_kinds() {
  static std::vector<ModelKind> kinds;
  return kinds;
}

const ModelKind* kind_of(const std::string& model) {
  const bool is_there = std::filesystem::exists(model);
  std::exception_ptr unreadable;  // a kind that cannot read a file need not be the one that it is of
  for (const ModelKind& kind : model_kinds()) {
    const auto presets = is_there ? std::vector<std::string>{} : kind.presets();
    try {
      if (is_there ? kind.is_folder(model) || kind.is_checkpoint(model)
                   : std::find(presets.begin(), presets.end(), model) != presets.end()) {
        return &kind;
      }
    } catch (const Error&) {
      if (!unreadable) unreadable = std::current_exception();
    }
  }
  if (unreadable) std::rethrow_exception(unreadable);
  return nullptr;
}

void refuse_other_kinds(const std::string& model, const char* command) {
  const ModelKind* kind = kind_of(model);
  MOH_CHECK(kind == nullptr, "[", command, "] ", model, " is ", kind->name, "; `moh ", kind->command, "` is for it");
}

void allow_only(const CLI::App& app, const std::vector<std::string>& options, const std::string& group,
                const std::string& model, const char* kind) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 || option->get_positional() || option->get_group() == kCommonGroup) continue;
    if (!group.empty() && option->get_group() == group) continue;
    const std::string name = "--" + option->get_lnames().at(0);
    if (name == "--help" || std::find(options.begin(), options.end(), name) != options.end()) continue;
    fail("[", app.get_name(), "] ", model, " is ", kind, ": ", name, " does not apply to it");
  }
}

void allow_none_of(const CLI::App& app, const std::string& group, const std::string& model, const char* kind) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 || option->get_group() != group) continue;
    fail("[", app.get_name(), "] ", model, " is ", kind, ": --", option->get_lnames().at(0), " does not apply to it");
  }
}

}  // namespace moh::cli
