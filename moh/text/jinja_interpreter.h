// Runs a parsed template.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moh/text/jinja_parser.h"
#include "moh/text/jinja_value.h"

namespace moh::text::jinja {

// What a call gives; the receiver reads it by place or by name.
struct Arguments {
  std::vector<Value> places;
  std::vector<std::pair<std::string, Value>> names;

  const Value* find(std::size_t place, std::string_view name) const;  // nullptr: not given
  // Fault: more arguments than `most`, or names that are not among `known`.
  void expect(std::string_view what, std::size_t least, std::size_t most,
              std::initializer_list<std::string_view> known = {}) const;
};

// Variables of one block; those of the blocks around it are seen too.
struct Scope {
  explicit Scope(const Scope* outer) : outer(outer) {}
  const Scope* outer;
  std::vector<std::pair<std::string, Value>> variables;

  void set(std::string_view name, Value value);
};

class Interpreter {
 public:
  explicit Interpreter(const Limits& limits) : budget(limits), limits_(limits) {}

  // The text of the template; `variables` are what it sees.
  std::string run(const std::vector<NodePtr>& nodes, std::vector<std::pair<std::string, Value>> variables);
  int line() const { return line_; }

  Value call(const Value& callee, const Arguments& arguments);
  Value attribute(const Value& object, std::string_view name);  // object.name
  Value item(const Value& object, const Value& key);            // object[key]
  Value apply_filter(std::string_view name, const Value& input, const Arguments& arguments);
  bool apply_test(std::string_view name, const Value& input, const Arguments& arguments);

  Budget budget;

 private:
  friend class Macro;
  friend class Loop;
  enum class Flow { on, broken, continued };

  Value evaluate(const Node& node, Scope& scope);
  Value evaluate_call(const Node& node, Scope& scope);
  Value evaluate_filter(const Node& node, Scope& scope, const Value* input);
  Arguments arguments_of(const Node& node, std::size_t first, Scope& scope);
  bool compare(const Node& node, Scope& scope);
  Value find(const std::string& name, const Scope& scope);
  void assign(const Node& target, Value value, Scope& scope);

  Flow execute(const std::vector<NodePtr>& nodes, Scope& scope, std::string& out);
  Flow execute(const Node& node, Scope& scope, std::string& out);
  Flow loop(const Node& node, Scope& scope, std::string& out);
  void print(const Value& value, std::string& out);

  Limits limits_;
  int line_ = 1, depth_ = 0, calls_ = 0;
};

// Operators of Python.
Value binary(std::string_view symbol, const Value& left, const Value& right, Budget& budget);
Value negate(std::string_view symbol, const Value& value);
Value slice(const Value& object, const Value& first, const Value& last, const Value& step, Budget& budget);

// Methods of strings and dictionaries; nothing: there is no such method.
bool is_method(const Value& object, std::string_view name);
Value call_method(const Value& object, std::string_view name, const Arguments& arguments, Budget& budget);

// Functions that every template sees, but raise_exception and strftime_now: range, namespace, dict, joiner, cycler.
std::vector<std::pair<std::string, Value>> standard_functions();
Value function(std::string name, std::function<Value(Interpreter&, const Arguments&)> body);

// Upper and lower case of single characters, as Python's.
std::string upper(std::string_view text);
std::string lower(std::string_view text);

}  // namespace moh::text::jinja
