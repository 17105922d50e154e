// Filters and tests of jinja2, with transformers' own tojson.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "moh/text/jinja_interpreter.h"
#include "moh/text/utf8.h"

namespace moh::text::jinja {
namespace {

using Args = const Arguments&;
using FilterFunction = Value (*)(Interpreter&, const Value&, Args);

bool truth_of(Args arguments, std::size_t place, std::string_view name, bool otherwise) {
  const Value* value = arguments.find(place, name);
  return value == nullptr ? otherwise : value->truth();
}
std::int64_t integer_of(Args arguments, std::size_t place, std::string_view name, std::int64_t otherwise) {
  const Value* value = arguments.find(place, name);
  if (value == nullptr) return otherwise;
  if (!value->is_integer()) fault("`", name, "` must be int, not ", value->type_name());
  return value->integer();
}
Value text_value(std::string text, Interpreter& in) { return make_string(std::move(text), in.budget); }

// "a.b.0" of an element.
Value attribute_of(Interpreter& in, const Value& object, const Value& path) {
  if (path.is_integer()) return in.item(object, path);
  if (path.string() == nullptr) fault("an attribute's name must be str, not ", path.type_name());
  std::string_view rest = *path.string();
  Value value = object;
  for (;;) {
    const std::size_t end = std::min(rest.find('.'), rest.size());
    const std::string part(rest.substr(0, end));
    std::int64_t number = 0;
    const auto [read, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    const bool is_number = error == std::errc() && read == part.data() + part.size() && part.front() != '-';
    value = in.item(value, is_number ? Value(number) : Value(part));
    if (end == rest.size()) return value;
    rest.remove_prefix(end + 1);
  }
}

// What elements are compared by: an attribute, letters without case.
Value key_of(Interpreter& in, const Value& element, const Value* attribute, bool ignores_case) {
  Value key = attribute == nullptr || attribute->is_none() ? element : attribute_of(in, element, *attribute);
  if (ignores_case && key.string() != nullptr) return text_value(lower(*key.string()), in);
  return key;
}

void sort_by(Interpreter& in, std::vector<std::pair<Value, Value>>& keyed, bool reversed) {
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reversed ? less(b.first, a.first, in.budget) : less(a.first, b.first, in.budget);
  });
}

Value sort_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("sort", 0, 3, {"reverse", "case_sensitive", "attribute"});
  const Value* attribute = a.find(2, "attribute");
  if (attribute != nullptr && attribute->string() != nullptr && attribute->string()->find(',') != std::string::npos)
    fault("sorting by several attributes is not supported");
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : elements(input, in.budget)) {
    Value key = key_of(in, item, attribute, !truth_of(a, 1, "case_sensitive", false));
    keyed.emplace_back(std::move(key), std::move(item));
  }
  sort_by(in, keyed, truth_of(a, 0, "reverse", false));
  std::vector<Value> sorted;
  for (auto& item : keyed) sorted.push_back(std::move(item.second));
  return make_list(std::move(sorted), in.budget);
}

Value dictsort_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("dictsort", 0, 3, {"case_sensitive", "by", "reverse"});
  if (input.dict() == nullptr) fault("dictsort of a ", input.type_name());
  const Value* by = a.find(1, "by");
  const bool by_value = by != nullptr && by->string() != nullptr && *by->string() == "value";
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : input.dict()->items) {
    keyed.emplace_back(key_of(in, by_value ? value : key, nullptr, !truth_of(a, 0, "case_sensitive", false)),
                       make_list({key, value}, in.budget, true));
  }
  sort_by(in, keyed, truth_of(a, 2, "reverse", false));
  std::vector<Value> sorted;
  for (auto& item : keyed) sorted.push_back(std::move(item.second));
  return make_list(std::move(sorted), in.budget);
}

Value extreme(Interpreter& in, const Value& input, Args a, bool most) {
  a.expect(most ? "max" : "min", 0, 2, {"case_sensitive", "attribute"});
  std::vector<Value> items = elements(input, in.budget);
  if (items.empty()) return Undefined{std::make_shared<const std::string>("No aggregated item, sequence was empty.")};
  const auto key = [&](const Value& item) {
    return key_of(in, item, a.find(1, "attribute"), !truth_of(a, 0, "case_sensitive", false));
  };
  std::size_t best = 0;
  for (std::size_t i = 1; i < items.size(); ++i) {
    const Value x = key(items[i]), y = key(items[best]);
    if (most ? less(y, x, in.budget) : less(x, y, in.budget)) best = i;
  }
  return items[best];
}

Value unique_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("unique", 0, 2, {"case_sensitive", "attribute"});
  std::vector<Value> kept, keys;
  for (const Value& item : elements(input, in.budget)) {
    Value key = key_of(in, item, a.find(1, "attribute"), !truth_of(a, 0, "case_sensitive", false));
    const bool seen =
        std::any_of(keys.begin(), keys.end(), [&](const Value& known) { return equal(known, key, in.budget); });
    if (seen) continue;
    keys.push_back(std::move(key));
    kept.push_back(item);
  }
  return make_list(std::move(kept), in.budget);
}

Value map_filter(Interpreter& in, const Value& input, Args a) {
  std::vector<Value> out;
  if (!input.truth()) return make_list({}, in.budget);  // jinja2 does not ask further, be it a list or none
  const Value* attribute = a.places.empty() ? a.find(SIZE_MAX, "attribute") : nullptr;
  if (attribute != nullptr) {
    a.expect("map", 1, 2, {"attribute", "default"});
    const Value* otherwise = a.find(SIZE_MAX, "default");
    for (const Value& item : elements(input, in.budget)) {
      Value value = attribute_of(in, item, *attribute);
      out.push_back(value.is_undefined() && otherwise != nullptr ? *otherwise : value);
    }
    return make_list(std::move(out), in.budget);
  }
  if (a.places.empty() || a.places[0].string() == nullptr) fault("map requires a filter argument");
  const std::string& name = *a.places[0].string();
  if (!is_filter(name)) fault("filter `", name.substr(0, 60), "` is not supported");
  const Arguments rest{{a.places.begin() + 1, a.places.end()}, a.names};
  for (const Value& item : elements(input, in.budget)) out.push_back(in.apply_filter(name, item, rest));
  return make_list(std::move(out), in.budget);
}

// select, reject, selectattr, rejectattr
Value choose(Interpreter& in, const Value& input, Args a, bool by_attribute, bool wanted) {
  const std::size_t first = by_attribute ? 1 : 0;
  if (a.places.size() < first) fault("an attribute's name is missing");
  std::string test;
  Arguments rest;
  if (a.places.size() > first) {
    if (a.places[first].string() == nullptr) fault("a test's name must be str, not ", a.places[first].type_name());
    test = *a.places[first].string();
    if (!is_test(test)) fault("test `", test.substr(0, 60), "` is not supported");
    rest.places.assign(a.places.begin() + static_cast<std::ptrdiff_t>(first) + 1, a.places.end());
  }
  std::vector<Value> kept;
  if (!input.truth()) return make_list({}, in.budget);
  for (const Value& item : elements(input, in.budget)) {
    const Value value = by_attribute ? attribute_of(in, item, a.places[0]) : item;
    if ((test.empty() ? value.truth() : in.apply_test(test, value, rest)) == wanted) kept.push_back(item);
  }
  return make_list(std::move(kept), in.budget);
}

Value join_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("join", 0, 2, {"d", "attribute"});
  const Value *given = a.find(0, "d"), *attribute = a.find(1, "attribute");
  const std::string separator = given == nullptr ? "" : str(*given, in.budget);
  std::string out;
  bool first = true;
  for (const Value& item : elements(input, in.budget)) {
    in.budget.allocate(separator.size());
    if (!first) out += separator;
    first = false;
    out += str(attribute == nullptr ? item : attribute_of(in, item, *attribute), in.budget);
  }
  return Value(std::move(out));
}

Value tojson_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("tojson", 0, 4, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = truth_of(a, 0, "ensure_ascii", false);
  style.sort_keys = truth_of(a, 3, "sort_keys", false);
  const Value* indent = a.find(1, "indent");
  if (indent != nullptr && !indent->is_none()) {
    if (indent->is_integer()) {
      style.indent = std::string(static_cast<std::size_t>(std::clamp<std::int64_t>(indent->integer(), 0, 64)), ' ');
    } else if (indent->string() != nullptr) {
      style.indent = *indent->string();
    } else {
      fault("tojson: `indent` must be int or str, not ", indent->type_name());
    }
    style.item_separator.assign(1, ',');
  }
  const Value* separators = a.find(2, "separators");
  if (separators != nullptr && !separators->is_none()) {
    const List* pair = separators->list();
    if (pair == nullptr || pair->items.size() != 2 || pair->items[0].string() == nullptr ||
        pair->items[1].string() == nullptr)
      fault("tojson: `separators` must be two strings");
    style.item_separator = *pair->items[0].string();
    style.key_separator = *pair->items[1].string();
  }
  return text_value(to_json_text(input, style, in.budget), in);
}

Value indent_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("indent", 0, 3, {"width", "first", "blank"});
  const Value* width = a.find(0, "width");
  const std::string space =
      width != nullptr && width->string() != nullptr
          ? *width->string()
          : std::string(static_cast<std::size_t>(std::clamp<std::int64_t>(integer_of(a, 0, "width", 4), 0, 1000)), ' ');
  const bool first = truth_of(a, 1, "first", false), blank = truth_of(a, 2, "blank", false);
  if (input.string() == nullptr) fault("indent of a ", input.type_name());
  const Value lines = call_method(Value(*input.string() + "\n"), "splitlines", {}, in.budget);
  std::string out;
  bool is_first = true;
  for (const Value& line : lines.list()->items) {
    if (!is_first) out += '\n';
    if (is_first ? first : blank || !line.string()->empty()) {
      in.budget.allocate(space.size());
      out += space;
    }
    out += *line.string();
    is_first = false;
  }
  return text_value(std::move(out), in);
}

Value length_filter(Interpreter& in, const Value& input, Args) {
  if (const std::string* text = input.string()) {
    in.budget.step(text->size() / 8 + 1);
    return count_characters(*text);
  }
  if (input.list() != nullptr) return static_cast<std::int64_t>(input.list()->items.size());
  if (input.dict() != nullptr) return static_cast<std::int64_t>(input.dict()->items.size());
  if (input.is_undefined()) return std::int64_t{0};
  fault("object of type '", input.type_name(), "' has no len()");
}

Value round_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("round", 0, 2, {"precision", "method"});
  if (!input.is_number()) fault("round of a ", input.type_name());
  const std::int64_t precision = integer_of(a, 0, "precision", 0);
  const Value* method = a.find(1, "method");
  const std::string name = method == nullptr ? "common" : str(*method, in.budget);
  if (precision < 0 || precision > 15) fault("round to ", precision, " digits is not supported");
  const double scale = std::pow(10.0, static_cast<double>(precision)), value = input.number();
  if (name == "ceil") return std::ceil(value * scale) / scale;
  if (name == "floor") return std::floor(value * scale) / scale;
  if (name != "common") fault("method must be common, ceil or floor");
  if (input.is_integer()) return input.integer();
  // Exactly half goes to the even neighbour: what a decimal conversion does.
  std::array<char, 512> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed,
                                 static_cast<int>(precision));
  double rounded = 0;
  std::from_chars(buffer.data(), end.ptr, rounded);
  return rounded;
}

Value int_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("int", 0, 2, {"default", "base"});
  const Value* given = a.find(0, "default");
  const Value otherwise = given == nullptr ? Value(std::int64_t{0}) : *given;
  if (input.is_integer()) return input.integer();
  double number = 0;
  if (input.is_float()) {
    number = input.number();
  } else if (input.string() != nullptr) {
    const std::string text(strip(*input.string(), true, true));
    const std::string_view digits = std::string_view(text).substr(text.starts_with('+') ? 1 : 0);
    std::int64_t whole = 0;
    const char* const end = digits.data() + digits.size();
    const int base = static_cast<int>(std::clamp<std::int64_t>(integer_of(a, 1, "base", 10), 2, 36));
    if (const auto read = std::from_chars(digits.data(), end, whole, base); read.ec == std::errc() && read.ptr == end)
      return whole;
    if (const auto read = std::from_chars(digits.data(), end, number); read.ec != std::errc() || read.ptr != end)
      return otherwise;
  } else {
    return otherwise;
  }
  (void)in;
  return std::isfinite(number) && std::fabs(number) < 9e18 ? Value(static_cast<std::int64_t>(number)) : otherwise;
}

Value float_filter(Interpreter&, const Value& input, Args a) {
  a.expect("float", 0, 1, {"default"});
  if (input.is_number()) return input.number();
  if (input.string() != nullptr) {
    const std::string_view text = strip(*input.string(), true, true);
    double number = 0;
    const auto read = std::from_chars(text.data(), text.data() + text.size(), number);
    if (!text.empty() && read.ec == std::errc() && read.ptr == text.data() + text.size()) return number;
  }
  const Value* given = a.find(0, "default");
  return given == nullptr ? Value(0.0) : *given;
}

// The first letter of each word, words being cut at spaces, hyphens and opening brackets.
Value title_filter(Interpreter& in, const Value& input, Args) {
  const std::string text = str(input, in.budget);
  std::string out;
  bool at_start = true;
  for (const std::string_view letter : characters(text)) {
    out += at_start ? upper(letter) : lower(letter);
    at_start = letter == "-" || letter == "(" || letter == "{" || letter == "[" || letter == "<" ||
               is_python_space(utf8_code_point(letter));
  }
  return text_value(std::move(out), in);
}

Value items_filter(Interpreter& in, const Value& input, Args) {
  if (input.is_undefined()) return make_list({}, in.budget);
  if (input.dict() == nullptr) fault("Can only get item pairs from a mapping.");
  return call_method(input, "items", {}, in.budget);
}

Value sum_filter(Interpreter& in, const Value& input, Args a) {
  a.expect("sum", 0, 2, {"attribute", "start"});
  const Value *attribute = a.find(0, "attribute"), *start = a.find(1, "start");
  Value total = start == nullptr ? Value(std::int64_t{0}) : *start;
  for (const Value& item : elements(input, in.budget)) {
    const bool whole = attribute == nullptr || attribute->is_none();
    total = binary("+", total, whole ? item : attribute_of(in, item, *attribute), in.budget);
  }
  return total;
}

Value default_filter(Interpreter&, const Value& input, Args a) {
  a.expect("default", 0, 2, {"default_value", "boolean"});
  const bool replaced = input.is_undefined() || (truth_of(a, 1, "boolean", false) && !input.truth());
  if (!replaced) return input;
  const Value* otherwise = a.find(0, "default_value");
  return otherwise == nullptr ? Value("") : *otherwise;
}

Value reverse_filter(Interpreter& in, const Value& input, Args) {
  std::vector<Value> items = elements(input, in.budget);
  std::reverse(items.begin(), items.end());
  if (input.string() == nullptr) return make_list(std::move(items), in.budget);
  std::string out;
  for (const Value& letter : items) out += *letter.string();
  return text_value(std::move(out), in);
}

Value abs_filter(Interpreter&, const Value& input, Args) {
  if (input.is_undefined()) fault(input.why_undefined());
  if (!input.is_number()) fault("bad operand type for abs(): '", input.type_name(), "'");
  if (input.is_float()) return std::fabs(input.number());
  return input.integer() < 0 ? negate("-", input) : Value(input.integer());
}

// Filters that are a method of the input's text.
template <const char* name>
Value text_method(Interpreter& in, const Value& input, Args a) {
  return call_method(text_value(str(input, in.budget), in), name, a, in.budget);
}
constexpr char kUpper[] = "upper", kLower[] = "lower", kCapitalize[] = "capitalize", kTrim[] = "strip";
constexpr char kReplace[] = "replace";

Value first_of(Interpreter& in, const Value& input, bool last) {
  if (last && input.is_undefined()) fault(input.why_undefined());
  std::vector<Value> items = elements(input, in.budget);
  if (!items.empty()) return last ? items.back() : items.front();
  return Undefined{std::make_shared<const std::string>("the sequence was empty")};
}

struct FilterEntry {
  std::string_view name;
  FilterFunction apply;
};
const FilterEntry kFilters[] = {
    {"abs", abs_filter},
    {"capitalize", text_method<kCapitalize>},
    {"count", length_filter},
    {"d", default_filter},
    {"default", default_filter},
    {"dictsort", dictsort_filter},
    {"first", [](Interpreter& in, const Value& input, Args) { return first_of(in, input, false); }},
    {"float", float_filter},
    {"indent", indent_filter},
    {"int", int_filter},
    {"items", items_filter},
    {"join", join_filter},
    {"last", [](Interpreter& in, const Value& input, Args) { return first_of(in, input, true); }},
    {"length", length_filter},
    {"list",
     [](Interpreter& in, const Value& input, Args) { return make_list(elements(input, in.budget), in.budget); }},
    {"lower", text_method<kLower>},
    {"map", map_filter},
    {"max", [](Interpreter& in, const Value& input, Args a) { return extreme(in, input, a, true); }},
    {"min", [](Interpreter& in, const Value& input, Args a) { return extreme(in, input, a, false); }},
    {"reject", [](Interpreter& in, const Value& input, Args a) { return choose(in, input, a, false, false); }},
    {"rejectattr", [](Interpreter& in, const Value& input, Args a) { return choose(in, input, a, true, false); }},
    {"replace", text_method<kReplace>},
    {"reverse", reverse_filter},
    {"round", round_filter},
    {"safe", [](Interpreter& in, const Value& input, Args) { return text_value(str(input, in.budget), in); }},
    {"select", [](Interpreter& in, const Value& input, Args a) { return choose(in, input, a, false, true); }},
    {"selectattr", [](Interpreter& in, const Value& input, Args a) { return choose(in, input, a, true, true); }},
    {"sort", sort_filter},
    {"string", [](Interpreter& in, const Value& input, Args) { return text_value(str(input, in.budget), in); }},
    {"sum", sum_filter},
    {"title", title_filter},
    {"tojson", tojson_filter},
    {"trim", text_method<kTrim>},
    {"unique", unique_filter},
    {"upper", text_method<kUpper>},
};

// ---- Tests

using TestFunction = bool (*)(Interpreter&, const Value&, Args);

const Value& operand(Args a) {
  if (a.places.size() != 1) fault("a test needs one value to compare with");
  return a.places[0];
}
bool is_sequence(const Value& value) {
  return value.string() != nullptr || value.list() != nullptr || value.dict() != nullptr || value.is_undefined();
}
// As in Python, % formats where the value is a string: that equals no number.
bool even_or_odd(const Value& value, std::int64_t rest, Budget& budget) {
  const Value found = binary("%", value, std::int64_t{2}, budget);
  return found.is_number() && found.number() == static_cast<double>(rest);
}
bool all_of_case(const Value& value, Budget& budget, const char* method) {
  return call_method(Value(str(value, budget)), method, {}, budget).truth();
}

struct TestEntry {
  std::string_view name;
  TestFunction holds;
};
const TestEntry kTests[] = {
    {"boolean", [](Interpreter&, const Value& x, Args) { return x.is_bool(); }},
    {"callable", [](Interpreter&, const Value& x, Args) { return x.object() != nullptr && x.object()->callable(); }},
    {"defined", [](Interpreter&, const Value& x, Args) { return !x.is_undefined(); }},
    {"divisibleby",
     [](Interpreter& in, const Value& x, Args a) { return !binary("%", x, operand(a), in.budget).truth(); }},
    {"eq", [](Interpreter& in, const Value& x, Args a) { return equal(x, operand(a), in.budget); }},
    {"equalto", [](Interpreter& in, const Value& x, Args a) { return equal(x, operand(a), in.budget); }},
    {"even", [](Interpreter& in, const Value& x, Args) { return even_or_odd(x, 0, in.budget); }},
    {"false", [](Interpreter&, const Value& x, Args) { return x.is_bool() && !x.flag(); }},
    {"float", [](Interpreter&, const Value& x, Args) { return x.is_float(); }},
    {"ge", [](Interpreter& in, const Value& x, Args a) { return !less(x, operand(a), in.budget); }},
    {"greaterthan", [](Interpreter& in, const Value& x, Args a) { return less(operand(a), x, in.budget); }},
    {"gt", [](Interpreter& in, const Value& x, Args a) { return less(operand(a), x, in.budget); }},
    {"in", [](Interpreter& in, const Value& x, Args a) { return contains(operand(a), x, in.budget); }},
    {"integer", [](Interpreter&, const Value& x, Args) { return x.is_integer() && !x.is_bool(); }},
    {"iterable", [](Interpreter&, const Value& x, Args) { return is_sequence(x); }},
    {"le", [](Interpreter& in, const Value& x, Args a) { return !less(operand(a), x, in.budget); }},
    {"lessthan", [](Interpreter& in, const Value& x, Args a) { return less(x, operand(a), in.budget); }},
    {"lower", [](Interpreter& in, const Value& x, Args) { return all_of_case(x, in.budget, "islower"); }},
    {"lt", [](Interpreter& in, const Value& x, Args a) { return less(x, operand(a), in.budget); }},
    {"mapping", [](Interpreter&, const Value& x, Args) { return x.dict() != nullptr; }},
    {"ne", [](Interpreter& in, const Value& x, Args a) { return !equal(x, operand(a), in.budget); }},
    {"none", [](Interpreter&, const Value& x, Args) { return x.is_none(); }},
    {"number", [](Interpreter&, const Value& x, Args) { return x.is_number(); }},
    {"odd", [](Interpreter& in, const Value& x, Args) { return even_or_odd(x, 1, in.budget); }},
    {"sequence", [](Interpreter&, const Value& x, Args) { return is_sequence(x); }},
    {"string", [](Interpreter&, const Value& x, Args) { return x.string() != nullptr; }},
    {"true", [](Interpreter&, const Value& x, Args) { return x.is_bool() && x.flag(); }},
    {"undefined", [](Interpreter&, const Value& x, Args) { return x.is_undefined(); }},
    {"upper", [](Interpreter& in, const Value& x, Args) { return all_of_case(x, in.budget, "isupper"); }},
};

template <class Table>
const auto* find_entry(const Table& table, std::string_view name) {
  const auto found =
      std::find_if(std::begin(table), std::end(table), [&](const auto& row) { return row.name == name; });
  return found == std::end(table) ? nullptr : &*found;
}

}  // namespace

bool is_filter(std::string_view name) { return find_entry(kFilters, name) != nullptr; }
bool is_test(std::string_view name) { return find_entry(kTests, name) != nullptr; }

Value Interpreter::apply_filter(std::string_view name, const Value& input, const Arguments& arguments) {
  budget.step();
  return find_entry(kFilters, name)->apply(*this, input, arguments);
}
bool Interpreter::apply_test(std::string_view name, const Value& input, const Arguments& arguments) {
  budget.step();
  return find_entry(kTests, name)->holds(*this, input, arguments);
}

}  // namespace moh::text::jinja
