// moh completion bash|zsh|fish: a script that completes commands, options, their values, files and folders. It is made
// from the options that the commands really have, so that it cannot fall behind them.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>

#include "cli/command.h"
#include "cli/model_kind.h"
#include "cli/usage.h"
#include "moh/kernels/backend.h"
#include "moh/models/llama_config.h"

namespace moh::cli {
namespace {

enum class Kind { kNothing, kFlag, kWords, kFile, kFolder };

struct Item {
  std::vector<std::string> names;  // "--out"; empty: a positional argument
  std::string help;
  Kind kind = Kind::kNothing;
  std::vector<std::string> words;
};

struct Node {
  std::string path;  // "eval", "tokenizer encode"
  std::string help;
  std::vector<Item> items;
  std::vector<std::pair<std::string, std::string>> commands;  // below it, with their help
};

bool mentions(const std::string& text, std::initializer_list<const char*> words) {
  return std::any_of(words.begin(), words.end(), [&](const char* w) { return text.find(w) != std::string::npos; });
}

// Words that are known though the option takes any text.
std::vector<std::string> known_words(const std::string& name) {
  if (name == "--device") return {"cpu", "cuda"};
  if (name == "--dtype") return {"fp32", "bf16", "fp16"};
  if (name == "--backend") {
    std::vector<std::string> names = {"composite"};
    for (const auto& backend : kernels::backends()) names.emplace_back(backend.name);
    return names;
  }
  if (name == "--preset") {
    std::vector<std::string> presets = models::llama_presets();
    for (const ModelKind& kind : model_kinds()) {
      for (const std::string& preset : kind.presets()) presets.push_back(preset);
    }
    return presets;
  }
  return {};
}

Item describe(const CLI::Option& option) {
  Item item;
  for (const std::string& name : option.get_lnames()) item.names.push_back("--" + name);
  item.help = option.get_description();
  item.words = allowed_values(option);
  if (item.words.empty() && !item.names.empty()) item.words = known_words(item.names[0]);
  if (option.get_items_expected_max() == 0) {
    item.kind = Kind::kFlag;
  } else if (!item.words.empty()) {
    item.kind = Kind::kWords;
  } else if (option.get_type_name().find("TEXT") != std::string::npos) {
    const bool is_file = mentions(item.help, {"file", "text", ".npz", ".npy", "PNG", "HTML", "checkpoint", ".json"});
    if (mentions(item.help, {"folder"})) {
      item.kind = is_file ? Kind::kFile : Kind::kFolder;
    } else if (mentions(item.help, {"file", ".npz", ".npy", "report"}) || item.names.empty()) {
      item.kind = Kind::kFile;
    }
  }
  return item;
}

void add_options(const CLI::App& app, Node& node) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;
    Item item = describe(*option);
    if (item.names == std::vector<std::string>{"--SECTION.KEY"}) continue;
    for (const Item& there : node.items) {  // --seed may be a command's own and everybody's
      std::erase_if(item.names, [&](const std::string& name) {
        return std::find(there.names.begin(), there.names.end(), name) != there.names.end();
      });
    }
    if (!item.names.empty() || option->get_positional()) node.items.push_back(std::move(item));
  }
}

// One more word where the first positional argument stands.
void add_word(Node& node, const std::string& word) {
  for (Item& item : node.items) {
    if (item.names.empty() && item.kind == Kind::kWords) return item.words.push_back(word);
  }
}

void collect(const CLI::App& app, const std::string& path, const CLI::App* parent, std::vector<Node>& nodes) {
  Node node{path, app.get_description(), {}, {}};
  add_options(app, node);
  if (parent != nullptr) add_options(*parent, node);
  if (app.get_require_subcommand_min() == 0) {  // `moh bench serve` beside `moh bench attention`: words like others
    for (const CLI::App* sub : app.get_subcommands({})) add_word(node, sub->get_name());
    nodes.push_back(node);
    return;
  }
  for (const CLI::App* sub : app.get_subcommands({}))
    node.commands.emplace_back(sub->get_name(), sub->get_description());
  nodes.push_back(node);
  for (const CLI::App* sub : app.get_subcommands({})) {
    collect(*sub, path.empty() ? sub->get_name() : path + " " + sub->get_name(), path.empty() ? nullptr : &app, nodes);
  }
}

// Names of a node's options, each once.
std::vector<std::string> option_words(const Node& node) {
  std::vector<std::string> words;
  for (const Item& item : node.items) words.insert(words.end(), item.names.begin(), item.names.end());
  return words;
}

std::vector<std::string> command_words(const Node& node) {
  std::vector<std::string> words;
  for (const auto& [name, help] : node.commands) words.push_back(name);
  return words;
}

// What stands where no option's value does.
Kind positional_kind(const Node& node) {
  Kind kind = Kind::kNothing;
  for (const Item& item : node.items) {
    if (!item.names.empty()) continue;
    if (item.kind == Kind::kWords) return Kind::kWords;
    if (kind != Kind::kFile) kind = item.kind;
  }
  return kind;
}

std::vector<std::string> positional_words(const Node& node) {
  for (const Item& item : node.items) {
    if (item.names.empty() && item.kind == Kind::kWords) return item.words;
  }
  return {};
}

std::string bash_reply(Kind kind, const std::vector<std::string>& words) {
  switch (kind) {
    case Kind::kWords:
      return fmt::format("COMPREPLY=($(compgen -W \"{}\" -- \"$cur\"))", fmt::join(words, " "));
    case Kind::kFile:
      return "compopt -o filenames 2>/dev/null; local IFS=$'\\n'; COMPREPLY=($(compgen -f -- \"$cur\"))";
    case Kind::kFolder:
      return "compopt -o filenames 2>/dev/null; local IFS=$'\\n'; COMPREPLY=($(compgen -d -- \"$cur\"))";
    default:
      return "COMPREPLY=()";
  }
}

std::string bash(const std::vector<Node>& nodes) {
  std::string values, positionals, options, subcommands;
  for (const Node& node : nodes) {
    if (!node.commands.empty()) {
      subcommands += fmt::format("    \"{}\") words=\"{}\" ;;\n", node.path, fmt::join(command_words(node), " "));
    }
    if (node.path.empty()) continue;
    options += fmt::format("      \"{}\") words=\"{}\" ;;\n", node.path, fmt::join(option_words(node), " "));
    positionals +=
        fmt::format("      \"{}\") {} ;;\n", node.path, bash_reply(positional_kind(node), positional_words(node)));
    std::map<std::string, std::string> replies;  // options with the same reply share a line
    for (const Item& item : node.items) {
      if (item.kind == Kind::kFlag) continue;
      for (const std::string& name : item.names) {
        auto& names = replies[bash_reply(item.kind, item.words)];
        names += fmt::format("{}\"{} {}\"", names.empty() ? "" : "|", node.path, name);
      }
    }
    for (const auto& [reply, names] : replies) values += fmt::format("    {}) {}; return ;;\n", names, reply);
  }
  return fmt::format(
      "# moh: put `source <(moh completion bash)` into ~/.bashrc.\n"
      "_moh() {{\n"
      "  local cur=\"${{COMP_WORDS[COMP_CWORD]}}\" prev=\"${{COMP_WORDS[COMP_CWORD-1]}}\" at=1 node=\"\" words=\"\"\n"
      "  if [ \"$cur\" = \"=\" ]; then cur=\"\"\n"  // bash takes --out=x apart
      "  elif [ \"$prev\" = \"=\" ]; then prev=\"${{COMP_WORDS[COMP_CWORD-2]}}\"; fi\n"
      "  COMPREPLY=()\n"
      "  while :; do\n"
      "    words=\"\"\n"
      "    case \"$node\" in\n{}    esac\n"
      "    [ -n \"$words\" ] || break\n"
      "    if [ \"$COMP_CWORD\" -eq \"$at\" ]; then COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")); return; fi\n"
      "    node=\"${{node:+$node }}${{COMP_WORDS[at]}}\"; at=$((at + 1))\n"
      "  done\n"
      "  case \"$node $prev\" in\n{}  esac\n"
      "  case \"$cur\" in\n"
      "    -*) case \"$node\" in\n{}      esac\n"
      "      COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n"
      "    *) case \"$node\" in\n{}      esac ;;\n"
      "  esac\n"
      "}}\ncomplete -F _moh moh\n",
      subcommands, values, options, positionals);
}

// Within single quotes; colons and brackets mean something to _arguments.
std::string zsh_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      if (c == ':' || c == '[' || c == ']' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out;
}

std::string zsh_action(const Item& item) {
  switch (item.kind) {
    case Kind::kFlag:
      return "";
    case Kind::kWords:
      return fmt::format(":value:({})", fmt::join(item.words, " "));
    case Kind::kFile:
      return ":file:_files";
    case Kind::kFolder:
      return ":folder:_files -/";
    default:
      return ":value: ";
  }
}

std::string zsh(const std::vector<Node>& nodes) {
  std::string cases;
  for (const Node& node : nodes) {
    if (!node.commands.empty()) {
      std::string list;
      for (const auto& [name, help] : node.commands) list += fmt::format(" '{}:{}'", name, zsh_text(help));
      cases += fmt::format("    '{}') commands=({}) ;;\n", node.path, list.substr(1));
      continue;
    }
    std::string arguments;
    for (const Item& item : node.items) {
      for (const std::string& name : item.names) {
        arguments += fmt::format(" \\\n      '{}[{}]{}'", name, zsh_text(item.help), zsh_action(item));
      }
    }
    Item rest;
    rest.kind = positional_kind(node);
    rest.words = positional_words(node);
    if (rest.kind != Kind::kNothing) arguments += fmt::format(" \\\n      '*{}'", zsh_action(rest));
    cases += fmt::format("    '{}') _arguments{}; return ;;\n", node.path, arguments);
  }
  return fmt::format(
      "#compdef moh\n# moh: put `source <(moh completion zsh)` behind compinit in ~/.zshrc.\n"
      "_moh() {{\n"
      "  local node=''\n  local -a commands\n"
      "  while :; do\n"
      "    commands=()\n"
      "    case \"$node\" in\n{}    esac\n"
      "    (( $#commands )) || return\n"
      "    if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
      "    node=\"${{node:+$node }}$words[2]\"; shift words; (( CURRENT-- ))\n"
      "  done\n"
      "}}\ncompdef _moh moh\n",
      cases);
}

std::string fish_text(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '\'' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return out;
}

std::string fish_value(Kind kind, const std::vector<std::string>& words) {
  switch (kind) {
    case Kind::kFlag:
      return "";
    case Kind::kWords:
      return fmt::format(" -x -a '{}'", fmt::join(words, " "));
    case Kind::kFile:
      return " -r -F";
    case Kind::kFolder:
      return " -x -a '(__fish_complete_directories)'";
    default:
      return " -x";
  }
}

// True where `path` has been typed, and nothing below it.
std::string fish_condition(const Node& node) {
  if (node.path.empty()) return "__fish_use_subcommand";
  const std::size_t space = node.path.find(' ');
  if (space != std::string::npos) {
    return fmt::format("__fish_seen_subcommand_from {}; and __fish_seen_subcommand_from {}", node.path.substr(0, space),
                       node.path.substr(space + 1));
  }
  if (node.commands.empty()) return "__fish_seen_subcommand_from " + node.path;
  return fmt::format("__fish_seen_subcommand_from {}; and not __fish_seen_subcommand_from {}", node.path,
                     fmt::join(command_words(node), " "));
}

std::string fish(const std::vector<Node>& nodes) {
  std::string out =
      "# moh: put `moh completion fish | source` into ~/.config/fish/config.fish.\ncomplete -c moh -e\ncomplete -c moh "
      "-f\n";
  for (const Node& node : nodes) {
    const std::string condition = fish_condition(node);
    for (const auto& [name, help] : node.commands) {
      out += fmt::format("complete -c moh -n '{}' -a {} -d '{}'\n", condition, name, fish_text(help));
    }
    if (node.path.empty() || !node.commands.empty()) continue;
    for (const Item& item : node.items) {
      for (const std::string& name : item.names) {
        out += fmt::format("complete -c moh -n '{}' -l '{}' -d '{}'{}\n", condition, name.substr(2),
                           fish_text(item.help), fish_value(item.kind, item.words));
      }
    }
    const Kind kind = positional_kind(node);
    if (kind == Kind::kWords) {
      out += fmt::format("complete -c moh -n '{}' -a '{}'\n", condition, fmt::join(positional_words(node), " "));
    } else if (kind == Kind::kFolder) {
      out += fmt::format("complete -c moh -n '{}' -a '(__fish_complete_directories)'\n", condition);
    } else if (kind == Kind::kFile) {
      out += fmt::format("complete -c moh -n '{}' -F\n", condition);
    }
  }
  return out;
}

const Registered registered{
    {"completion", "print a script that completes commands, options and values in a shell",
     [](CLI::App& app, Context&) -> Run {
       auto shell = std::make_shared<std::string>("bash");
       app.add_option("shell", *shell, "bash, zsh or fish")->check(CLI::IsMember({"bash", "zsh", "fish"}));
       return [&app, shell] {
         std::vector<Node> nodes;
         collect(*app.get_parent(), "", nullptr, nodes);
         fmt::print("{}", *shell == "zsh" ? zsh(nodes) : *shell == "fish" ? fish(nodes) : bash(nodes));
         return 0;
       };
     }}};

}  // namespace
}  // namespace moh::cli
