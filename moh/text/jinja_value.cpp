#include "moh/text/jinja_value.h"

#include <algorithm>
#include <cmath>

#include "moh/text/unicode.h"
#include "moh/text/utf8.h"

namespace moh::text::jinja {
namespace {

// Exact where a double could not tell two integers apart.
int compare_numbers(const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
  const double x = a.number(), y = b.number();
  return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
}

}  // namespace

std::optional<Value> Object::attribute(std::string_view) const { return std::nullopt; }
Value Object::call(Interpreter&, const Arguments&) const { fault("'", type_name(), "' object is not callable"); }

const std::string* Value::string() const {
  const auto* text = std::get_if<std::shared_ptr<const std::string>>(&data_);
  return text == nullptr ? nullptr : text->get();
}
const List* Value::list() const {
  const auto* list = std::get_if<std::shared_ptr<const List>>(&data_);
  return list == nullptr ? nullptr : list->get();
}
const Dict* Value::dict() const {
  const auto* dict = std::get_if<std::shared_ptr<const Dict>>(&data_);
  return dict == nullptr ? nullptr : dict->get();
}
Object* Value::object() const {
  const auto* object = std::get_if<std::shared_ptr<Object>>(&data_);
  return object == nullptr ? nullptr : object->get();
}
std::int64_t Value::integer() const { return is_bool() ? flag() : std::get<std::int64_t>(data_); }
double Value::number() const { return is_float() ? std::get<double>(data_) : static_cast<double>(integer()); }
std::string Value::why_undefined() const {
  const auto& why = std::get<Undefined>(data_).why;
  return why == nullptr ? "the value is undefined" : *why;
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_integer()) return integer() != 0;
  if (is_float()) return number() != 0;
  if (const std::string* text = string()) return !text->empty();
  if (const List* items = list()) return !items->items.empty();
  if (const Dict* items = dict()) return !items->items.empty();
  return true;
}

std::string Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_integer()) return "int";
  if (is_float()) return "float";
  if (string() != nullptr) return "str";
  if (const List* items = list()) return items->is_tuple ? "tuple" : "list";
  if (dict() != nullptr) return "dict";
  return object()->type_name();
}

int Value::depth() const { return list() != nullptr ? list()->depth : dict() != nullptr ? dict()->depth : 0; }
bool Value::holds_object() const {
  return object() != nullptr || (list() != nullptr && list()->holds_object) ||
         (dict() != nullptr && dict()->holds_object);
}

const Value* Dict::find(const Value& key, Budget& budget) const {
  if (const std::string* text = key.string()) return find_text(*text, budget);
  if (key.list() != nullptr || key.dict() != nullptr) fault("unhashable type: '", key.type_name(), "'");
  budget.step(items.size() / 4 + 1);
  for (const auto& [name, value] : items)
    if (equal(name, key, budget)) return &value;
  return nullptr;
}
const Value* Dict::find_text(std::string_view key, Budget& budget) const {
  budget.step(items.size() / 4 + 1);
  for (const auto& [name, value] : items)
    if (name.string() != nullptr && *name.string() == key) return &value;
  return nullptr;
}

Value make_list(std::vector<Value> items, Budget& budget, bool is_tuple) {
  budget.allocate(sizeof(List) + items.size() * sizeof(Value));
  auto list = std::make_shared<List>();
  for (const Value& item : items) {
    list->depth = std::max(list->depth, item.depth() + 1);
    list->holds_object = list->holds_object || item.holds_object();
  }
  if (list->depth > kMaxValueDepth) fault("lists are nested more than ", kMaxValueDepth, " deep");
  list->items = std::move(items);
  list->is_tuple = is_tuple;
  return std::shared_ptr<const List>(std::move(list));
}

Value make_dict(std::vector<std::pair<Value, Value>> items, Budget& budget) {
  budget.allocate(sizeof(Dict) + items.size() * 2 * sizeof(Value));
  auto dict = std::make_shared<Dict>();
  for (const auto& item : items) {
    dict->depth = std::max(dict->depth, item.second.depth() + 1);
    dict->holds_object = dict->holds_object || item.second.holds_object();
  }
  if (dict->depth > kMaxValueDepth) fault("dictionaries are nested more than ", kMaxValueDepth, " deep");
  dict->items = std::move(items);
  return std::shared_ptr<const Dict>(std::move(dict));
}

Value make_string(std::string text, Budget& budget) {
  budget.allocate(text.size() + 48);
  return Value(std::move(text));
}

Value value_of_json(const Json& json, Budget& budget) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      if (json.is_number_unsigned() && json.get<std::uint64_t>() > INT64_MAX) return json.get<double>();
      return json.get<std::int64_t>();
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string:
      return make_string(json.get<std::string>(), budget);
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) items.push_back(value_of_json(item, budget));
      return make_list(std::move(items), budget);
    }
    case Json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      for (const auto& [key, item] : json.items()) items.emplace_back(Value(key), value_of_json(item, budget));
      return make_dict(std::move(items), budget);
    }
    default:
      return None{};
  }
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) == 0;
  if (a.is_undefined() || a.is_none()) return a.is_undefined() == b.is_undefined() && a.is_none() == b.is_none();
  if (a.string() != nullptr && b.string() != nullptr) return *a.string() == *b.string();
  if (const List *x = a.list(), *y = b.list(); x != nullptr && y != nullptr) {
    if (x->is_tuple != y->is_tuple || x->items.size() != y->items.size()) return false;
    for (std::size_t i = 0; i < x->items.size(); ++i)
      if (!equal(x->items[i], y->items[i], budget)) return false;
    return true;
  }
  if (const Dict *x = a.dict(), *y = b.dict(); x != nullptr && y != nullptr) {
    if (x->items.size() != y->items.size()) return false;
    for (const auto& [key, value] : x->items) {
      const Value* other = y->find(key, budget);
      if (other == nullptr || !equal(value, *other, budget)) return false;
    }
    return true;
  }
  return a.object() != nullptr && a.object() == b.object();
}

bool less(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) == -1;
  if (a.string() != nullptr && b.string() != nullptr) return *a.string() < *b.string();
  if (const List *x = a.list(), *y = b.list(); x != nullptr && y != nullptr && x->is_tuple == y->is_tuple) {
    for (std::size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i)
      if (!equal(x->items[i], y->items[i], budget)) return less(x->items[i], y->items[i], budget);
    return x->items.size() < y->items.size();
  }
  if (a.is_undefined()) fault(a.why_undefined());
  if (b.is_undefined()) fault(b.why_undefined());
  fault("'<' not supported between instances of '", a.type_name(), "' and '", b.type_name(), "'");
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (const std::string* text = container.string()) {
    if (item.string() == nullptr) fault("'in <string>' requires string as left operand, not ", item.type_name());
    budget.step(text->size() / 16 + 1);
    return text->find(*item.string()) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) return dict->find(item, budget) != nullptr;
  if (const List* list = container.list()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& value) { return equal(value, item, budget); });
  }
  if (container.is_undefined()) return false;
  fault("argument of type '", container.type_name(), "' is not iterable");
}

std::vector<Value> elements(const Value& value, Budget& budget) {
  std::vector<Value> items;
  if (const List* list = value.list()) {
    budget.step(list->items.size());
    budget.allocate(list->items.size() * sizeof(Value));
    return list->items;
  }
  if (const Dict* dict = value.dict()) {
    budget.step(dict->items.size());
    budget.allocate(dict->items.size() * sizeof(Value));
    for (const auto& item : dict->items) items.push_back(item.first);
    return items;
  }
  if (const std::string* text = value.string()) {
    budget.step(text->size());
    budget.allocate(text->size() * (sizeof(Value) + 48));
    for (const std::string_view character : characters(*text)) items.emplace_back(std::string(character));
    return items;
  }
  if (value.is_undefined()) return items;
  fault("'", value.type_name(), "' object is not iterable");
}

std::int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}
std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> found;
  found.reserve(text.size());
  while (!text.empty()) {
    const std::size_t size = std::max<std::size_t>(utf8_length(text), 1);
    found.push_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return found;
}

bool is_python_space(std::uint32_t c) { return is_white_space(c) || (c >= 0x1c && c <= 0x1f); }

std::string_view strip(std::string_view text, bool left, bool right) {
  while (left && !text.empty()) {
    const std::size_t size = std::max<std::size_t>(utf8_length(text), 1);
    if (!is_python_space(utf8_code_point(text.substr(0, size)))) break;
    text.remove_prefix(size);
  }
  while (right && !text.empty()) {
    std::size_t at = text.size() - 1;
    while (at > 0 && (text[at] & 0xc0) == 0x80) --at;
    if (!is_python_space(utf8_code_point(text.substr(at)))) break;
    text = text.substr(0, at);
  }
  return text;
}

}  // namespace moh::text::jinja
