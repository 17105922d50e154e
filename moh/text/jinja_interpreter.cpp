#include "moh/text/jinja_interpreter.h"

#include <algorithm>
#include <deque>
#include <optional>

namespace moh::text::jinja {

using Kind = Node::Kind;

const Value* Arguments::find(std::size_t place, std::string_view name) const {
  if (place < places.size()) return &places[place];
  for (const auto& [given, value] : names)
    if (given == name) return &value;
  return nullptr;
}

void Arguments::expect(std::string_view what, std::size_t least, std::size_t most,
                       std::initializer_list<std::string_view> known) const {
  for (const auto& [given, value] : names) {
    if (std::find(known.begin(), known.end(), given) == known.end())
      fault(what, "() got an unexpected argument '", given, "'");
  }
  if (places.size() + names.size() < least) fault(what, "() needs at least ", least, " argument(s)");
  if (places.size() + names.size() > most) fault(what, "() takes at most ", most, " argument(s)");
}

void Scope::set(std::string_view name, Value value) {
  for (auto& [known, old] : variables) {
    if (known != name) continue;
    old = std::move(value);
    return;
  }
  variables.emplace_back(std::string(name), std::move(value));
}

namespace {

Value undefined(std::string why) { return Undefined{std::make_shared<const std::string>(std::move(why))}; }

// Names beginning with an underscore are Python's own, out of a template's reach.
bool is_private(std::string_view name) { return name.starts_with('_'); }

// Counts how deep the evaluation is, for the sake of the stack.
struct Level {
  explicit Level(int& depth) : depth(depth) {
    constexpr int kMaxDepth = 400;
    if (++depth > kMaxDepth) fault("the template is nested too deeply");
  }
  ~Level() { --depth; }
  int& depth;
};

}  // namespace

// ---- Objects

class Namespace : public Object {
 public:
  std::string type_name() const override { return "Namespace"; }
  std::optional<Value> attribute(std::string_view name) const override {
    for (const auto& [known, value] : attributes_)
      if (known == name) return value;
    return std::nullopt;
  }
  void set(std::string_view name, Value value) {
    if (is_private(name)) fault("a namespace cannot have the attribute `", name, "`");
    // Nothing may come to hold itself.
    if (value.holds_object()) fault("functions and namespaces within a namespace are not supported");
    for (auto& [known, old] : attributes_) {
      if (known != name) continue;
      old = std::move(value);
      return;
    }
    attributes_.emplace_back(std::string(name), std::move(value));
  }

 private:
  std::vector<std::pair<std::string, Value>> attributes_;
};

namespace {

class Function : public Object {
 public:
  Function(std::string name, std::function<Value(Interpreter&, const Arguments&)> body)
      : name_(std::move(name)), body_(std::move(body)) {}
  std::string type_name() const override { return "function"; }
  bool callable() const override { return true; }
  Value call(Interpreter& interpreter, const Arguments& arguments) const override {
    return body_(interpreter, arguments);
  }

 private:
  std::string name_;
  std::function<Value(Interpreter&, const Arguments&)> body_;
};

class Method : public Object {
 public:
  Method(Value object, std::string name) : object_(std::move(object)), name_(std::move(name)) {}
  std::string type_name() const override { return "builtin_function_or_method"; }
  bool callable() const override { return true; }
  Value call(Interpreter& interpreter, const Arguments& arguments) const override {
    return call_method(object_, name_, arguments, interpreter.budget);
  }

 private:
  Value object_;
  std::string name_;
};

}  // namespace

Value function(std::string name, std::function<Value(Interpreter&, const Arguments&)> body) {
  return std::shared_ptr<Object>(std::make_shared<Function>(std::move(name), std::move(body)));
}

// Also the body of a call block. It sees the variables where it was defined, which outlive it: functions cannot leave
// the block that they are in.
class Macro : public Object {
 public:
  Macro(const Node& node, Scope& scope) : node_(node), scope_(scope) {}
  std::string type_name() const override { return "Macro"; }
  bool callable() const override { return true; }
  std::optional<Value> attribute(std::string_view name) const override {
    if (name == "name") return Value(node_.text);
    return std::nullopt;
  }

  Value call(Interpreter& interpreter, const Arguments& given) const override {
    if (++interpreter.calls_ > interpreter.limits_.call_depth) fault("macros call one another too deeply");
    Scope scope(&scope_);
    const std::vector<std::string>& parameters = node_.texts;
    const std::size_t first_default = node_.kind == Kind::call_block ? 1 : 0;
    const std::size_t without_default = parameters.size() - (node_.items.size() - first_default);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Value* value = given.find(i, parameters[i]);
      if (value != nullptr) {
        scope.set(parameters[i], *value);
      } else if (i >= without_default) {
        scope.set(parameters[i], interpreter.evaluate(*node_.items[first_default + i - without_default], scope));
      } else {
        scope.set(parameters[i], undefined("parameter '" + parameters[i] + "' was not provided"));
      }
    }
    take_rest(given, scope, interpreter.budget);
    std::string out;
    interpreter.execute(node_.blocks.front(), scope, out);
    --interpreter.calls_;
    return make_string(std::move(out), interpreter.budget);
  }

 private:
  void take_rest(const Arguments& given, Scope& scope, Budget& budget) const {
    const std::size_t count = node_.texts.size();
    std::vector<Value> places;
    for (std::size_t i = count; i < given.places.size(); ++i) places.push_back(given.places[i]);
    if (!places.empty() && !node_.uses_varargs) {
      fault("macro '", node_.text, "' takes not more than ", count, " argument(s)");
    }
    std::vector<std::pair<Value, Value>> names;
    Value caller = undefined("No caller defined");
    for (const auto& [name, value] : given.names) {
      const auto at = std::find(node_.texts.begin(), node_.texts.end(), name);
      if (at == node_.texts.end()) {
        if (name == "caller" && node_.uses_caller) {
          caller = value;
        } else if (node_.uses_kwargs) {
          names.emplace_back(Value(name), value);
        } else {
          fault("macro '", node_.text, "' takes no keyword argument '", name, "'");
        }
      } else if (static_cast<std::size_t>(at - node_.texts.begin()) < given.places.size()) {
        fault("macro '", node_.text, "' got multiple values for argument '", name, "'");
      }
    }
    if (node_.uses_varargs) scope.set("varargs", make_list(std::move(places), budget, true));
    if (node_.uses_kwargs) scope.set("kwargs", make_dict(std::move(names), budget));
    if (node_.uses_caller) scope.set("caller", caller);
  }

  const Node& node_;
  Scope& scope_;
};

// The variable `loop`. Elements that a condition chooses are asked for one by one, as jinja2 does: the condition may
// depend on what the body did before.
class Loop : public Object {
 public:
  Loop(const Node& node, std::vector<Value> items, Interpreter& interpreter, Scope& scope)
      : node_(node), items_(std::move(items)), interpreter_(interpreter), scope_(scope) {}

  std::string type_name() const override { return "LoopContext"; }

  // Whether there is an element after the current one.
  bool has_next() const { return !ready_.empty() || fetch(); }
  void advance() {
    if (index_ > 0) previous_ = std::move(current_);
    current_ = std::move(ready_.front());
    ready_.pop_front();
    ++index_;
  }
  const Value& current() const { return current_; }

  std::optional<Value> attribute(std::string_view name) const override {
    if (name == "index") return Value(index_);
    if (name == "index0") return Value(index_ - 1);
    if (name == "first") return Value(index_ == 1);
    if (name == "last") return Value(!has_next());
    if (name == "length") return Value(length());
    if (name == "revindex") return Value(length() - index_ + 1);
    if (name == "revindex0") return Value(length() - index_);
    if (name == "depth") return Value(std::int64_t{1});
    if (name == "depth0") return Value(std::int64_t{0});
    if (name == "previtem") return index_ > 1 ? previous_ : undefined("there is no previous item");
    if (name == "nextitem") return has_next() ? ready_.front() : undefined("there is no next item");
    if (name == "cycle") {
      return function("cycle", [index = index_](Interpreter&, const Arguments& arguments) {
        if (arguments.places.empty()) fault("no items for cycling given");
        return arguments.places[static_cast<std::size_t>(index - 1) % arguments.places.size()];
      });
    }
    if (name == "changed") fault("`loop.changed` is not supported");
    return std::nullopt;
  }

 private:
  // Makes one more element ready.
  bool fetch() const {
    while (at_ < items_.size()) {
      Value item = items_[at_++];
      interpreter_.budget.step();
      if (node_.items[1] != nullptr) {
        Scope scope(&scope_);
        interpreter_.assign(*node_.targets[0], item, scope);
        if (!interpreter_.evaluate(*node_.items[1], scope).truth()) continue;
      }
      ready_.push_back(std::move(item));
      return true;
    }
    return false;
  }
  std::int64_t length() const {
    while (fetch()) {
    }
    return index_ + static_cast<std::int64_t>(ready_.size());
  }

  const Node& node_;
  std::vector<Value> items_;
  Interpreter& interpreter_;
  Scope& scope_;
  std::int64_t index_ = 0;
  mutable std::size_t at_ = 0;
  mutable std::deque<Value> ready_;  // chosen, and not seen by the body yet
  Value current_, previous_;
};

std::vector<std::pair<std::string, Value>> standard_functions() {
  const auto range = [](Interpreter& interpreter, const Arguments& arguments) -> Value {
    arguments.expect("range", 1, 3);
    std::int64_t numbers[3] = {0, 0, 1};
    const std::size_t count = arguments.places.size();
    for (std::size_t i = 0; i < count; ++i) {
      if (!arguments.places[i].is_integer()) fault("range() takes integers, not ", arguments.places[i].type_name());
      numbers[count == 1 ? 1 : i] = arguments.places[i].integer();
    }
    const auto [first, last, step] = numbers;
    if (step == 0) fault("range() arg 3 must not be zero");
    constexpr std::int64_t kMost = 100000;  // as in the sandbox
    std::vector<Value> items;
    for (__int128 i = first; step > 0 ? i < last : i > last; i += step) {
      if (items.size() == kMost) fault("range too big, expected at most ", kMost, " elements");
      items.emplace_back(static_cast<std::int64_t>(i));
    }
    interpreter.budget.step(items.size());
    return make_list(std::move(items), interpreter.budget);
  };
  const auto make_namespace = [](Interpreter& interpreter, const Arguments& arguments) -> Value {
    if (arguments.places.size() > 1) fault("namespace() takes at most one dictionary");
    auto made = std::make_shared<Namespace>();
    if (!arguments.places.empty()) {
      const Dict* dict = arguments.places[0].dict();
      if (dict == nullptr) fault("namespace() takes a dictionary, not ", arguments.places[0].type_name());
      for (const auto& [key, value] : dict->items) {
        if (key.string() != nullptr) made->set(*key.string(), value);
      }
    }
    for (const auto& [name, value] : arguments.names) made->set(name, value);
    interpreter.budget.allocate(sizeof(Namespace));
    return std::shared_ptr<Object>(std::move(made));
  };
  const auto dict = [](Interpreter& interpreter, const Arguments& arguments) -> Value {
    if (arguments.places.size() > 1 || (arguments.places.size() == 1 && arguments.places[0].dict() == nullptr))
      fault("dict() of anything but a dictionary is not supported");
    std::vector<std::pair<Value, Value>> items;
    if (!arguments.places.empty()) items = arguments.places[0].dict()->items;
    for (const auto& [name, value] : arguments.names) {
      std::erase_if(items, [&](const auto& item) { return item.first.string() && *item.first.string() == name; });
      items.emplace_back(Value(name), value);
    }
    return make_dict(std::move(items), interpreter.budget);
  };
  const auto joiner = [](Interpreter&, const Arguments& arguments) -> Value {
    arguments.expect("joiner", 0, 1, {"sep"});
    const Value* given = arguments.find(0, "sep");
    return function("joiner",
                    [separator = given == nullptr ? Value(", ") : *given, used = std::make_shared<bool>(false)](
                        Interpreter&, const Arguments&) { return std::exchange(*used, true) ? separator : Value(""); });
  };
  std::vector<std::pair<std::string, Value>> all;
  all.emplace_back("range", function("range", range));
  all.emplace_back("namespace", function("namespace", make_namespace));
  all.emplace_back("dict", function("dict", dict));
  all.emplace_back("joiner", function("joiner", joiner));
  return all;
}

// ---- Expressions

Value Interpreter::find(const std::string& name, const Scope& scope) {
  for (const Scope* at = &scope; at != nullptr; at = at->outer) {
    budget.step(at->variables.size() / 8 + 1);
    for (const auto& [known, value] : at->variables)
      if (known == name) return value;
  }
  return undefined("'" + name + "' is undefined");
}

Value Interpreter::attribute(const Value& object, std::string_view name) {
  if (object.is_undefined()) fault(object.why_undefined());
  const auto missing = [&] {
    const std::string type = object.dict() != nullptr ? "dict object" : object.type_name() + " object";
    return undefined("'" + type + "' has no attribute '" + std::string(name) + "'");
  };
  if (is_private(name)) {
    const Value* found = object.dict() != nullptr ? object.dict()->find_text(name, budget) : nullptr;
    if (found != nullptr) return *found;
    return undefined("access to attribute '" + std::string(name) + "' is unsafe");
  }
  if (object.object() != nullptr) {
    std::optional<Value> found = object.object()->attribute(name);
    return found ? *found : missing();
  }
  if (is_method(object, name)) return std::shared_ptr<Object>(std::make_shared<Method>(object, std::string(name)));
  if (object.dict() != nullptr) {
    if (const Value* found = object.dict()->find_text(name, budget)) return *found;
  }
  return missing();
}

Value Interpreter::item(const Value& object, const Value& key) {
  if (object.is_undefined()) fault(object.why_undefined());
  if (const Dict* dict = object.dict(); dict != nullptr && key.list() == nullptr && key.dict() == nullptr) {
    if (const Value* found = dict->find(key, budget)) return *found;
  } else if (key.is_integer() && (object.list() != nullptr || object.string() != nullptr)) {
    const std::string* text = object.string();
    if (text != nullptr) budget.step(text->size() / 8 + 1);
    const std::int64_t size =
        text != nullptr ? count_characters(*text) : static_cast<std::int64_t>(object.list()->items.size());
    std::int64_t at = key.integer();
    if (at < 0) at += size;
    if (at >= 0 && at < size) {
      if (text == nullptr) return object.list()->items[static_cast<std::size_t>(at)];
      budget.step(text->size());
      return make_string(std::string(characters(*text)[static_cast<std::size_t>(at)]), budget);
    }
  }
  if (key.string() != nullptr) return attribute(object, *key.string());
  return undefined(object.type_name() + " object has no element " + (key.object() ? "like that" : repr(key, budget)));
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  if (callee.is_undefined()) fault(callee.why_undefined());
  if (callee.object() == nullptr) fault("'", callee.type_name(), "' object is not callable");
  return callee.object()->call(*this, arguments);
}

Arguments Interpreter::arguments_of(const Node& node, std::size_t first, Scope& scope) {
  Arguments arguments;
  for (std::size_t i = first; i < node.items.size(); ++i) arguments.places.push_back(evaluate(*node.items[i], scope));
  for (const auto& [name, value] : node.named) arguments.names.emplace_back(name, evaluate(*value, scope));
  return arguments;
}

Value Interpreter::evaluate_call(const Node& node, Scope& scope) {
  const Node& callee = *node.items[0];
  if (callee.kind != Kind::attribute) {
    const Value function = evaluate(callee, scope);
    return call(function, arguments_of(node, 1, scope));
  }
  const Value object = evaluate(*callee.items[0], scope);
  if (object.object() == nullptr && !object.is_undefined() && is_method(object, callee.text)) {
    return call_method(object, callee.text, arguments_of(node, 1, scope), budget);
  }
  const Value function = attribute(object, callee.text);
  return call(function, arguments_of(node, 1, scope));
}

Value Interpreter::evaluate_filter(const Node& node, Scope& scope, const Value* input) {
  const Value value = node.items[0] == nullptr ? *input
                      : node.items[0]->kind == Kind::filter && input != nullptr
                          ? evaluate_filter(*node.items[0], scope, input)
                          : evaluate(*node.items[0], scope);
  line_ = node.line;
  return apply_filter(node.text, value, arguments_of(node, 1, scope));
}

bool Interpreter::compare(const Node& node, Scope& scope) {
  Value left = evaluate(*node.items[0], scope);
  for (std::size_t i = 0; i < node.texts.size(); ++i) {
    Value right = evaluate(*node.items[i + 1], scope);
    const std::string& symbol = node.texts[i];
    const bool holds = symbol == "=="   ? equal(left, right, budget)
                       : symbol == "!=" ? !equal(left, right, budget)
                       : symbol == "<"  ? less(left, right, budget)
                       : symbol == ">"  ? less(right, left, budget)
                       : symbol == "<=" ? less(left, right, budget) || equal(left, right, budget)
                       : symbol == ">=" ? less(right, left, budget) || equal(left, right, budget)
                       : symbol == "in" ? contains(right, left, budget)
                                        : !contains(right, left, budget);
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluate(const Node& node, Scope& scope) {
  budget.step();
  line_ = node.line;
  const Level level(depth_);
  const auto item_or_none = [&](std::size_t i) {
    return node.items[i] == nullptr ? Value(None{}) : evaluate(*node.items[i], scope);
  };
  switch (node.kind) {
    case Kind::constant:
      return node.value;
    case Kind::name:
      return find(node.text, scope);
    case Kind::list:
    case Kind::tuple: {
      std::vector<Value> items;
      for (const NodePtr& item : node.items) items.push_back(evaluate(*item, scope));
      return make_list(std::move(items), budget, node.kind == Kind::tuple);
    }
    case Kind::dict: {
      std::vector<std::pair<Value, Value>> items;
      for (std::size_t i = 0; i < node.items.size(); i += 2) {
        Value key = evaluate(*node.items[i], scope), value = evaluate(*node.items[i + 1], scope);
        if (key.list() != nullptr || key.dict() != nullptr) fault("unhashable type: '", key.type_name(), "'");
        const auto old =
            std::find_if(items.begin(), items.end(), [&](const auto& item) { return equal(item.first, key, budget); });
        if (old != items.end()) {
          old->second = std::move(value);
        } else {
          items.emplace_back(std::move(key), std::move(value));
        }
      }
      return make_dict(std::move(items), budget);
    }
    case Kind::attribute:
      return attribute(evaluate(*node.items[0], scope), node.text);
    case Kind::subscript: {
      const Value object = evaluate(*node.items[0], scope);
      return item(object, evaluate(*node.items[1], scope));
    }
    case Kind::slice: {
      const Value object = evaluate(*node.items[0], scope);
      if (object.is_undefined()) fault(object.why_undefined());
      const Value first = item_or_none(1), last = item_or_none(2), step = item_or_none(3);
      return slice(object, first, last, step, budget);
    }
    case Kind::call:
      return evaluate_call(node, scope);
    case Kind::filter:
      return evaluate_filter(node, scope, nullptr);
    case Kind::test: {
      const Value input = evaluate(*node.items[0], scope);
      return apply_test(node.text, input, arguments_of(node, 1, scope));
    }
    case Kind::negate: {
      const Value value = evaluate(*node.items[0], scope);
      return node.text == "not" ? Value(!value.truth()) : negate(node.text, value);
    }
    case Kind::binary: {
      const Value left = evaluate(*node.items[0], scope), right = evaluate(*node.items[1], scope);
      line_ = node.line;
      return binary(node.text, left, right, budget);
    }
    case Kind::compare:
      return compare(node, scope);
    case Kind::logical: {
      Value left = evaluate(*node.items[0], scope);
      return left.truth() == (node.text == "or") ? left : evaluate(*node.items[1], scope);
    }
    case Kind::ternary:
      if (evaluate(*node.items[0], scope).truth()) return evaluate(*node.items[1], scope);
      if (node.items[2] != nullptr) return evaluate(*node.items[2], scope);
      return undefined("the inline if-expression evaluated to false and no else section was defined");
    default:
      fault("unexpected statement");
  }
}

// ---- Statements

void Interpreter::assign(const Node& target, Value value, Scope& scope) {
  if (target.kind == Kind::name) return scope.set(target.text, std::move(value));
  if (target.kind == Kind::attribute) {
    const Value object = find(target.items[0]->text, scope);
    auto* space = dynamic_cast<Namespace*>(object.object());
    if (space == nullptr) fault("cannot assign attribute on non-namespace object `", target.items[0]->text, "`");
    return space->set(target.text, std::move(value));
  }
  const std::vector<Value> items = elements(value, budget);
  if (items.size() != target.items.size())
    fault("cannot unpack ", items.size(), " values into ", target.items.size(), " variables");
  for (std::size_t i = 0; i < items.size(); ++i) assign(*target.items[i], items[i], scope);
}

void Interpreter::print(const Value& value, std::string& out) {
  if (const std::string* text = value.string()) {
    budget.allocate(text->size());
    out += *text;
  } else {
    out += str(value, budget);
  }
}

Interpreter::Flow Interpreter::execute(const std::vector<NodePtr>& nodes, Scope& scope, std::string& out) {
  for (const NodePtr& node : nodes) {
    const Flow flow = execute(*node, scope, out);
    if (flow != Flow::on) return flow;
  }
  return Flow::on;
}

Interpreter::Flow Interpreter::loop(const Node& node, Scope& scope, std::string& out) {
  std::vector<Value> items = elements(evaluate(*node.items[0], scope), budget);
  const auto state = std::make_shared<Loop>(node, std::move(items), *this, scope);
  bool any = false;
  while (state->has_next()) {
    any = true;
    state->advance();
    Scope inner(&scope);
    inner.set("loop", std::shared_ptr<Object>(state));
    assign(*node.targets[0], state->current(), inner);
    if (execute(node.blocks[0], inner, out) == Flow::broken) return Flow::on;
  }
  if (any) return Flow::on;
  Scope inner(&scope);
  return execute(node.blocks[1], inner, out);
}

Interpreter::Flow Interpreter::execute(const Node& node, Scope& scope, std::string& out) {
  budget.step();
  line_ = node.line;
  const Level level(depth_);
  const auto body_text = [&](Scope& inner) {
    std::string text;
    execute(node.blocks[0], inner, text);
    return make_string(std::move(text), budget);
  };
  switch (node.kind) {
    case Kind::output:
      budget.allocate(node.text.size());
      out += node.text;
      return Flow::on;
    case Kind::print:
      print(evaluate(*node.items[0], scope), out);
      return Flow::on;
    case Kind::choice: {
      std::size_t chosen = 0;
      while (chosen < node.items.size() && !evaluate(*node.items[chosen], scope).truth()) ++chosen;
      return execute(node.blocks[chosen], scope, out);
    }
    case Kind::loop:
      return loop(node, scope, out);
    case Kind::set:
      assign(*node.targets[0], evaluate(*node.items[0], scope), scope);
      return Flow::on;
    case Kind::set_block: {
      Scope inner(&scope);
      Value value = body_text(inner);
      if (node.items[0] != nullptr) value = evaluate_filter(*node.items[0], scope, &value);
      assign(*node.targets[0], std::move(value), scope);
      return Flow::on;
    }
    case Kind::macro:
      scope.set(node.text, std::shared_ptr<Object>(std::make_shared<Macro>(node, scope)));
      return Flow::on;
    case Kind::call_block: {
      const Node& target = *node.items[0];
      const Value callee = evaluate(*target.items[0], scope);
      Arguments arguments = arguments_of(target, 1, scope);
      arguments.names.emplace_back("caller", std::shared_ptr<Object>(std::make_shared<Macro>(node, scope)));
      print(call(callee, arguments), out);
      return Flow::on;
    }
    case Kind::filter_block: {
      Scope inner(&scope);
      const Value value = body_text(inner);
      print(evaluate_filter(*node.items[0], scope, &value), out);
      return Flow::on;
    }
    case Kind::with: {
      Scope inner(&scope);
      for (std::size_t i = 0; i < node.targets.size(); ++i)
        assign(*node.targets[i], evaluate(*node.items[i], scope), inner);
      return execute(node.blocks[0], inner, out);
    }
    case Kind::scope: {
      Scope inner(&scope);
      return execute(node.blocks[0], inner, out);
    }
    case Kind::break_loop:
      return Flow::broken;
    case Kind::continue_loop:
      return Flow::continued;
    default:
      fault("unexpected expression");
  }
}

std::string Interpreter::run(const std::vector<NodePtr>& nodes, std::vector<std::pair<std::string, Value>> variables) {
  Scope outer(nullptr), scope(&outer);
  outer.variables = standard_functions();
  for (auto& [name, value] : variables) outer.set(name, std::move(value));
  std::string out;
  execute(nodes, scope, out);
  return out;
}

}  // namespace moh::text::jinja
