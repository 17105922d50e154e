// moh completion: a script that completes commands and options in bash (and zsh through bashcompinit).
#include <fmt/format.h>

#include "cli/command.h"

namespace moh::cli {
namespace {

int completion() {
  std::string names, cases;
  for (const Command& command : commands()) {
    CLI::App app;
    Context scratch;
    command.setup(app, scratch);
    std::string words = "--json --device --dtype --threads --seed --backend --config --help";
    for (const CLI::Option* option : app.get_options()) {
      for (const std::string& name : option->get_lnames()) words += " --" + name;
    }
    for (const CLI::App* sub : app.get_subcommands({})) words += " " + sub->get_name();
    names += std::string(names.empty() ? "" : " ") + command.name;
    cases += fmt::format("    {}) words=\"{}\" ;;\n", command.name, words);
  }
  fmt::print(
      "# moh: put `source <(moh completion)` into ~/.bashrc; in zsh run `autoload bashcompinit && bashcompinit` first.\n"
      "_moh() {{\n  local word=\"${{COMP_WORDS[COMP_CWORD]}}\" words=\"\"\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then words=\"{}\"; else case \"${{COMP_WORDS[1]}}\" in\n{}  esac; fi\n"
      "  case \"$word\" in -*) COMPREPLY=($(compgen -W \"$words\" -- \"$word\")) ;;\n"
      "    *) COMPREPLY=($(compgen -W \"$words\" -- \"$word\") $(compgen -f -- \"$word\")) ;; esac\n"
      "}}\ncomplete -o filenames -F _moh moh\n",
      names, cases);
  return 0;
}

const Registered registered{{"completion", "print a shell completion script",
                             [](CLI::App&, Context&) -> Run { return [] { return completion(); }; }}};

}  // namespace
}  // namespace moh::cli
