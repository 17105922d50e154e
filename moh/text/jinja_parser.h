// Templates as trees: what jinja2 parses, less inheritance and inclusion of other files, which chat templates cannot
// have.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moh/text/jinja_value.h"

namespace moh::text::jinja {

struct Node;
using NodePtr = std::unique_ptr<Node>;

struct Node {
  // Expressions: what they have in `items` (some may be null), and what `text` is.
  enum class Kind {
    constant,   // value
    name,       // text
    list,       // items
    tuple,      // items
    dict,       // items: key, value, key, value ...
    attribute,  // object; text: its name
    subscript,  // object, key
    slice,      // object, first?, last?, step?
    call,       // callee, arguments ...; named
    filter,     // input?, arguments ...; named; text: its name
    test,       // input, arguments ...; named; text: its name
    negate,     // text: "-", "+", "not"
    binary,     // left, right; text: the operator
    compare,    // left, then operands; texts: the operators
    logical,    // left, right; text: "and", "or"
    ternary,    // condition, value, otherwise?
    // Statements
    output,        // text
    print,         // expression
    choice,        // condition, condition ...; blocks: one more than conditions
    loop,          // iterable, condition?; targets; blocks: body, else
    set,           // value; targets
    set_block,     // filter?; targets; blocks: body
    macro,         // default values, of the last parameters; text: its name; texts: parameters; blocks: body
    call_block,    // the call, default values; texts: parameters; blocks: body
    filter_block,  // filter; blocks: body
    with,          // values; targets; blocks: body
    scope,         // blocks: body (generation)
    break_loop,
    continue_loop,
  };
  Kind kind;
  int line = 1;
  int depth = 1;  // of the tree below
  std::string text;
  Value value;
  std::vector<NodePtr> items;
  std::vector<std::pair<std::string, NodePtr>> named;
  std::vector<std::string> texts;
  std::vector<NodePtr> targets;  // name, tuple of such, attribute of a name
  std::vector<std::vector<NodePtr>> blocks;
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;  // of a macro
};

// Fault: what cannot be parsed; `line` is where.
std::vector<NodePtr> parse(std::string_view source, int& line);

bool is_filter(std::string_view name);
bool is_test(std::string_view name);

}  // namespace moh::text::jinja
