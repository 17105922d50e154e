// Values of the template language: Python's, as far as templates see them. Strings, lists and dictionaries never change
// once they are made, as in jinja2's immutable sandbox, so they are shared and never copied.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moh/base/error.h"
#include "moh/base/fields.h"

namespace moh::text::jinja {

// What is wrong with a template or with what it does; becomes a moh::Error with the template's name and line.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
template <class... Args>
[[noreturn]] void fault(const Args&... args) {
  throw Fault(detail::concat(args...));
}

// What a template may use up: one from elsewhere can neither hang nor fill the memory.
struct Limits {
  std::uint64_t steps = 20'000'000;              // nodes evaluated, elements and characters looked at
  std::uint64_t bytes = std::uint64_t{1} << 28;  // of all strings and lists made, output included
  int call_depth = 64;                           // macros within macros
};
class Budget {
 public:
  explicit Budget(const Limits& limits) : steps_(limits.steps), bytes_(limits.bytes) {}
  void step(std::uint64_t count = 1) {
    if (count > steps_) fault("the template takes too many steps");
    steps_ -= count;
  }
  void allocate(std::uint64_t count) {
    if (count > bytes_) fault("the template makes too much text");
    bytes_ -= count;
  }

 private:
  std::uint64_t steps_, bytes_;
};

class Value;
class Interpreter;
struct Arguments;

// Whatever is none of Python's plain values: functions, macros, methods, `loop`, namespaces.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string type_name() const = 0;
  virtual std::optional<Value> attribute(std::string_view name) const;
  virtual bool callable() const { return false; }
  virtual Value call(Interpreter& interpreter, const Arguments& arguments) const;
};

struct Undefined {
  std::shared_ptr<const std::string> why;  // "'x' is undefined"
};
struct None {};
struct List;
struct Dict;

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None) : data_(None{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool value) : data_(value) {}
  Value(std::int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string text) : data_(std::make_shared<const std::string>(std::move(text))) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(std::shared_ptr<const List> list) : data_(std::move(list)) {}
  Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}
  Value(std::shared_ptr<Object> object) : data_(std::move(object)) {}

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_integer() const { return std::holds_alternative<std::int64_t>(data_) || is_bool(); }  // as in Python
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_integer() || is_float(); }
  const std::string* string() const;
  const List* list() const;  // a tuple too
  const Dict* dict() const;
  Object* object() const;
  const std::shared_ptr<Object>& shared_object() const { return std::get<std::shared_ptr<Object>>(data_); }
  bool flag() const { return std::get<bool>(data_); }
  std::int64_t integer() const;  // of is_integer()
  double number() const;         // of is_number()
  std::string why_undefined() const;

  bool truth() const;
  std::string type_name() const;  // as Python's messages have it
  int depth() const;
  bool holds_object() const;

 private:
  std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Object>>
      data_;
};

constexpr int kMaxValueDepth = 80;

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;
  bool holds_object = false;
};
struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  int depth = 1;
  bool holds_object = false;
  const Value* find(const Value& key, Budget& budget) const;
  const Value* find_text(std::string_view key, Budget& budget) const;
};

// They check and fill in depth and holds_object, and count the bytes.
Value make_list(std::vector<Value> items, Budget& budget, bool is_tuple = false);
Value make_dict(std::vector<std::pair<Value, Value>> items, Budget& budget);
Value make_string(std::string text, Budget& budget);
Value value_of_json(const Json& json, Budget& budget);

bool equal(const Value& a, const Value& b, Budget& budget);
bool less(const Value& a, const Value& b, Budget& budget);  // Fault: kinds that have no order
bool contains(const Value& container, const Value& item, Budget& budget);

// str() and repr() of Python.
std::string str(const Value& value, Budget& budget);
std::string repr(const Value& value, Budget& budget);

struct JsonStyle {
  bool ensure_ascii = false, sort_keys = false;
  std::optional<std::string> indent;
  std::string item_separator = ", ", key_separator = ": ";
};
std::string to_json_text(const Value& value, const JsonStyle& style, Budget& budget);  // json.dumps

// All that a loop over `value` sees. Fault: not iterable.
std::vector<Value> elements(const Value& value, Budget& budget);

// ---- Text by characters

std::int64_t count_characters(std::string_view text);
std::vector<std::string_view> characters(std::string_view text);
bool is_python_space(std::uint32_t code_point);
std::string_view strip(std::string_view text, bool left, bool right);

}  // namespace moh::text::jinja
