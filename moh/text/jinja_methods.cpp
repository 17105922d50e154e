// Methods of strings, lists and dictionaries that templates call: Python's.
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <functional>

#include "moh/text/jinja_interpreter.h"
#include "moh/text/utf8.h"

namespace moh::text::jinja {
namespace {

template <class Change>
std::string mapped(std::string_view text, const Change& change) {
  std::string out;
  for (const std::string_view character : characters(text)) {
    const auto code = static_cast<utf8proc_int32_t>(utf8_code_point(character));
    append_utf8(out, static_cast<std::uint32_t>(change(code)));
  }
  return out;
}

bool is_upper(std::string_view c) { return utf8proc_category(utf8_code_point(c)) == UTF8PROC_CATEGORY_LU; }
bool is_lower(std::string_view c) { return utf8proc_category(utf8_code_point(c)) == UTF8PROC_CATEGORY_LL; }
bool is_letter(std::string_view c) {
  const auto category = utf8proc_category(utf8_code_point(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}
bool is_decimal(std::string_view c) { return utf8proc_category(utf8_code_point(c)) == UTF8PROC_CATEGORY_ND; }

using Args = const Arguments&;

const std::string& text_argument(Args arguments, std::size_t place, std::string_view name, std::string_view method) {
  const Value* value = arguments.find(place, name);
  if (value == nullptr) fault(method, "() needs the argument '", name, "'");
  if (value->string() == nullptr) fault(method, "(): '", name, "' must be str, not ", value->type_name());
  return *value->string();
}

// strip("xy"), or of white space.
Value strip_method(const std::string& text, Args arguments, bool left, bool right, Budget& budget) {
  arguments.expect("strip", 0, 1);
  const Value* given = arguments.find(0, "");
  if (given == nullptr || given->is_none()) return make_string(std::string(strip(text, left, right)), budget);
  const std::string& set = text_argument(arguments, 0, "chars", "strip");
  budget.step(text.size() / 8 + set.size());
  const std::vector<std::string_view> letters = characters(text), wanted = characters(set);
  const auto in_set = [&](std::string_view letter) {
    budget.step(wanted.size());
    return std::find(wanted.begin(), wanted.end(), letter) != wanted.end();
  };
  std::size_t begin = 0, end = letters.size();
  while (left && begin < end && in_set(letters[begin])) ++begin;
  while (right && end > begin && in_set(letters[end - 1])) --end;
  std::string out;
  for (std::size_t i = begin; i < end; ++i) out += letters[i];
  return make_string(std::move(out), budget);
}

Value split_at_spaces(std::string_view text, std::int64_t most, Budget& budget) {
  std::vector<Value> parts;
  text = strip(text, true, false);
  while (!text.empty()) {
    std::size_t size = 0;
    if (most >= 0 && static_cast<std::int64_t>(parts.size()) == most) {
      parts.push_back(make_string(std::string(text), budget));
      break;
    }
    while (size < text.size()) {
      const std::size_t length = std::max<std::size_t>(utf8_length(text.substr(size)), 1);
      if (is_python_space(utf8_code_point(text.substr(size, length)))) break;
      size += length;
    }
    parts.push_back(make_string(std::string(text.substr(0, size)), budget));
    text = strip(text.substr(size), true, false);
  }
  return make_list(std::move(parts), budget);
}

Value split_method(const std::string& text, Args arguments, bool from_right, Budget& budget) {
  arguments.expect("split", 0, 2, {"sep", "maxsplit"});
  const Value *separator = arguments.find(0, "sep"), *limit = arguments.find(1, "maxsplit");
  if (limit != nullptr && !limit->is_integer()) fault("split(): 'maxsplit' must be int, not ", limit->type_name());
  const std::int64_t most = limit == nullptr ? -1 : limit->integer();
  if (separator == nullptr || separator->is_none()) {
    if (from_right && most >= 0) fault("rsplit() at white space with `maxsplit` is not supported");
    return split_at_spaces(text, most, budget);
  }
  const std::string& mark = text_argument(arguments, 0, "sep", "split");
  if (mark.empty()) fault("empty separator");
  std::vector<Value> parts;
  std::string_view rest = text;
  const auto may_split = [&] { return most < 0 || static_cast<std::int64_t>(parts.size()) < most; };
  const auto add = [&](std::string_view part) { parts.push_back(make_string(std::string(part), budget)); };
  while (may_split()) {
    const std::size_t at = from_right ? rest.rfind(mark) : rest.find(mark);
    if (at == rest.npos) break;
    add(from_right ? rest.substr(at + mark.size()) : rest.substr(0, at));
    rest = from_right ? rest.substr(0, at) : rest.substr(at + mark.size());
  }
  add(rest);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return make_list(std::move(parts), budget);
}

Value split_lines(std::string_view text, Args arguments, Budget& budget) {
  arguments.expect("splitlines", 0, 1, {"keepends"});
  const Value* given = arguments.find(0, "keepends");
  const bool keeps = given != nullptr && given->truth();
  std::vector<Value> lines;
  constexpr std::array<std::string_view, 11> kEnds = {"\r\n", "\n",   "\r",       "\v",           "\f",          "\x1c",
                                                      "\x1d", "\x1e", "\xc2\x85", "\xe2\x80\xa8", "\xe2\x80\xa9"};
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    const auto end = std::find_if(kEnds.begin(), kEnds.end(), [&](auto mark) { return rest.starts_with(mark); });
    if (end == kEnds.end()) {
      ++at;
      continue;
    }
    lines.push_back(make_string(std::string(text.substr(begin, at - begin + (keeps ? end->size() : 0))), budget));
    begin = at = at + end->size();
  }
  if (begin < text.size()) lines.push_back(make_string(std::string(text.substr(begin)), budget));
  return make_list(std::move(lines), budget);
}

Value replace_method(const std::string& text, Args arguments, Budget& budget) {
  arguments.expect("replace", 2, 3, {"count"});
  const std::string &from = text_argument(arguments, 0, "old", "replace"),
                    &to = text_argument(arguments, 1, "new", "replace");
  const Value* limit = arguments.find(2, "count");
  if (limit != nullptr && !limit->is_integer()) fault("replace(): 'count' must be int, not ", limit->type_name());
  std::int64_t left = limit == nullptr || limit->integer() < 0 ? INT64_MAX : limit->integer();
  std::string out;
  const auto add = [&](std::string_view part) {
    budget.allocate(part.size());
    out += part;
  };
  if (from.empty()) {  // between all characters
    for (const std::string_view letter : characters(text)) {
      if (left-- > 0) add(to);
      add(letter);
    }
    if (left > 0) add(to);
    return Value(std::move(out));
  }
  std::size_t done = 0;
  for (std::size_t at = text.find(from); at != text.npos && left > 0; at = text.find(from, done), --left) {
    add(std::string_view(text).substr(done, at - done));
    add(to);
    done = at + from.size();
  }
  add(std::string_view(text).substr(done));
  return Value(std::move(out));
}

bool begins_or_ends(const std::string& text, Args arguments, bool at_end) {
  const char* const name = at_end ? "endswith" : "startswith";
  arguments.expect(name, 1, 1);
  const Value& given = arguments.places.at(0);
  const auto matches = [&](const Value& part) {
    if (part.string() == nullptr) fault(name, " first arg must be str or a tuple of str, not ", part.type_name());
    return at_end ? text.ends_with(*part.string()) : text.starts_with(*part.string());
  };
  if (given.list() == nullptr || !given.list()->is_tuple) return matches(given);
  return std::any_of(given.list()->items.begin(), given.list()->items.end(), matches);
}

std::string title(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (const std::string_view letter : characters(text)) {
    const bool cased =
        is_upper(letter) || is_lower(letter) || utf8proc_category(utf8_code_point(letter)) == UTF8PROC_CATEGORY_LT;
    out += !cased ? std::string(letter) : in_word ? lower(letter) : upper(letter);
    in_word = cased;
  }
  return out;
}

template <class Test>
bool all_letters(const std::string& text, const Test& test) {
  const auto letters = characters(text);
  return !letters.empty() && std::all_of(letters.begin(), letters.end(), test);
}
bool has_case(const std::string& text, bool upper_case) {
  bool any = false;
  for (const std::string_view letter : characters(text)) {
    if (upper_case ? is_lower(letter) : is_upper(letter)) return false;
    any = any || is_upper(letter) || is_lower(letter);
  }
  return any;
}

Value find_method(std::string_view name, const std::string& text, Args arguments, Budget& budget) {
  if (arguments.places.size() > 1) fault(name, "() with a place to begin at is not supported");
  const std::string& part = text_argument(arguments, 0, "sub", name);
  budget.step(text.size() / 8 + 1);
  const std::size_t at = name.starts_with('r') ? text.rfind(part) : text.find(part);
  if (at != text.npos) return count_characters(std::string_view(text).substr(0, at));
  if (name.ends_with("index")) fault("substring not found");
  return std::int64_t{-1};
}

Value count_method(const std::string& text, Args arguments, Budget& budget) {
  arguments.expect("count", 1, 1);
  const std::string& part = text_argument(arguments, 0, "sub", "count");
  budget.step(text.size() / 8 + 1);
  if (part.empty()) return count_characters(text) + 1;
  std::int64_t count = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

Value join_method(const std::string& text, Args arguments, Budget& budget) {
  arguments.expect("join", 1, 1);
  std::string out;
  bool first = true;
  for (const Value& item : elements(arguments.places.at(0), budget)) {
    if (item.string() == nullptr) fault("sequence item: expected str instance, ", item.type_name(), " found");
    budget.allocate(item.string()->size() + text.size());
    if (!first) out += text;
    first = false;
    out += *item.string();
  }
  return Value(std::move(out));
}

// "{} of {name}", without conversions and formats.
Value format_method(const std::string& text, Args arguments, Budget& budget) {
  std::string out;
  std::size_t next = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '{' && text[i] != '}') {
      out += text[i];
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == text[i]) {
      out += text[i++];
      continue;
    }
    const std::size_t end = text[i] == '{' ? text.find('}', i) : text.npos;
    if (end == text.npos) fault("single '", std::string(1, text[i]), "' encountered in format string");
    const std::string field = text.substr(i + 1, end - i - 1);
    const bool is_number = std::all_of(field.begin(), field.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (field.find_first_of(":!.[{") != field.npos || (is_number && field.size() > 3))
      fault("`{", field.substr(0, 40), "}` is not supported in a format, expected a name or place alone");
    const std::size_t place = !is_number ? SIZE_MAX : field.empty() ? next++ : std::stoul(field);
    const Value* value = arguments.find(place, is_number ? "" : field);
    if (value == nullptr) fault("format(): no argument for `{", field.substr(0, 40), "}`");
    out += str(*value, budget);
    i = end;
  }
  return make_string(std::move(out), budget);
}

Value partition(const std::string& text, Args arguments, bool from_right, Budget& budget) {
  const std::string& mark = text_argument(arguments, 0, "sep", "partition");
  if (mark.empty()) fault("empty separator");
  const std::size_t at = from_right ? text.rfind(mark) : text.find(mark);
  std::vector<Value> parts = {Value(text), Value(""), Value("")};
  if (at != text.npos) parts = {Value(text.substr(0, at)), Value(mark), Value(text.substr(at + mark.size()))};
  if (at == text.npos && from_right) parts = {Value(""), Value(""), Value(text)};
  budget.allocate(text.size());
  return make_list(std::move(parts), budget, true);
}

Value string_method(const std::string& text, std::string_view name, Args arguments, Budget& budget) {
  budget.step(text.size() / 16 + 1);
  const auto made = [&](std::string result) { return make_string(std::move(result), budget); };
  if (name == "strip") return strip_method(text, arguments, true, true, budget);
  if (name == "lstrip") return strip_method(text, arguments, true, false, budget);
  if (name == "rstrip") return strip_method(text, arguments, false, true, budget);
  if (name == "split") return split_method(text, arguments, false, budget);
  if (name == "rsplit") return split_method(text, arguments, true, budget);
  if (name == "splitlines") return split_lines(text, arguments, budget);
  if (name == "startswith") return begins_or_ends(text, arguments, false);
  if (name == "endswith") return begins_or_ends(text, arguments, true);
  if (name == "replace") return replace_method(text, arguments, budget);
  if (name == "find" || name == "rfind" || name == "index" || name == "rindex")
    return find_method(name, text, arguments, budget);
  if (name == "count") return count_method(text, arguments, budget);
  if (name == "join") return join_method(text, arguments, budget);
  if (name == "format") return format_method(text, arguments, budget);
  if (name == "partition" || name == "rpartition") return partition(text, arguments, name == "rpartition", budget);
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& part = text_argument(arguments, 0, "part", name);
    if (name == "removeprefix") return made(text.starts_with(part) ? text.substr(part.size()) : text);
    return made(text.ends_with(part) ? text.substr(0, text.size() - part.size()) : text);
  }
  arguments.expect(name, 0, 0);
  if (name == "upper") return made(upper(text));
  if (name == "lower") return made(lower(text));
  if (name == "title") return made(title(text));
  if (name == "capitalize") {
    const auto letters = characters(text);
    if (letters.empty()) return Value("");
    return made(upper(letters[0]) + lower(std::string_view(text).substr(letters[0].size())));
  }
  if (name == "isdigit") return all_letters(text, is_decimal);
  if (name == "isalpha") return all_letters(text, is_letter);
  if (name == "isalnum") return all_letters(text, [](auto c) { return is_letter(c) || is_decimal(c); });
  if (name == "isspace") return all_letters(text, [](auto c) { return is_python_space(utf8_code_point(c)); });
  if (name == "isupper") return has_case(text, true);
  return has_case(text, false);  // islower
}

Value dict_method(const Value& object, std::string_view name, Args arguments, Budget& budget) {
  const Dict& dict = *object.dict();
  if (name == "get") {
    arguments.expect("get", 1, 2);
    const Value* found = dict.find(arguments.places.at(0), budget);
    if (found != nullptr) return *found;
    return arguments.places.size() > 1 ? arguments.places[1] : Value(None{});
  }
  arguments.expect(name, 0, 0);
  if (name == "copy") return object;
  std::vector<Value> items;
  budget.step(dict.items.size());
  for (const auto& [key, value] : dict.items) {
    items.push_back(name == "keys" ? key : name == "values" ? value : make_list({key, value}, budget, true));
  }
  return make_list(std::move(items), budget);
}

Value list_method(const List& list, std::string_view name, Args arguments, Budget& budget) {
  arguments.expect(name, 1, 1);
  std::int64_t count = 0;
  for (std::size_t i = 0; i < list.items.size(); ++i) {
    if (!equal(list.items[i], arguments.places.at(0), budget)) continue;
    if (name == "index") return static_cast<std::int64_t>(i);
    ++count;
  }
  if (name == "index") fault("the value is not in the list");
  return count;
}

constexpr std::array<std::string_view, 29> kStringMethods = {
    "capitalize",   "count",        "endswith",   "find",    "format", "index",  "isalnum",    "isalpha",
    "isdigit",      "islower",      "isspace",    "isupper", "join",   "lower",  "lstrip",     "partition",
    "removeprefix", "removesuffix", "replace",    "rfind",   "rindex", "rsplit", "rpartition", "rstrip",
    "split",        "splitlines",   "startswith", "strip",   "title"};
constexpr std::array<std::string_view, 5> kDictMethods = {"get", "items", "keys", "values", "copy"};

template <class Names>
bool among(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::string upper(std::string_view text) {
  std::string out;
  for (const std::string_view letter : characters(text))
    out += letter == "\xc3\x9f" ? "SS" : mapped(letter, utf8proc_toupper);  // the sharp s, which becomes two
  return out;
}
std::string lower(std::string_view text) { return mapped(text, utf8proc_tolower); }

bool is_method(const Value& object, std::string_view name) {
  if (object.string() != nullptr) return among(kStringMethods, name) || name == "upper";
  if (object.dict() != nullptr) return among(kDictMethods, name);
  return object.list() != nullptr && (name == "index" || name == "count");
}

Value call_method(const Value& object, std::string_view name, const Arguments& arguments, Budget& budget) {
  if (object.string() != nullptr) return string_method(*object.string(), name, arguments, budget);
  if (object.dict() != nullptr) return dict_method(object, name, arguments, budget);
  return list_method(*object.list(), name, arguments, budget);
}

}  // namespace moh::text::jinja
