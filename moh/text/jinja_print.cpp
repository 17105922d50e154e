// Values as text: str(), repr() and json.dumps() of Python.
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "moh/text/jinja_value.h"
#include "moh/text/utf8.h"

namespace moh::text::jinja {
namespace {

// The shortest digits that give the number back, with an exponent where Python writes one.
std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 400> buffer;
  const double size = std::fabs(value);
  const bool exponent = size != 0 && (size < 1e-4 || size >= 1e16);
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 exponent ? std::chars_format::scientific : std::chars_format::fixed)
                       .ptr;
  std::string text(buffer.data(), end);
  if (!exponent && text.find('.') == std::string::npos) text += ".0";
  return text;
}

bool is_printable(std::uint32_t c) {
  if (c == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string hex(std::uint32_t value, int digits) {
  std::string text(static_cast<std::size_t>(digits), '0');
  for (auto place = text.rbegin(); place != text.rend(); ++place, value /= 16) *place = "0123456789abcdef"[value % 16];
  return text;
}

std::string quoted(const std::string& text) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (const std::string_view character : characters(text)) {
    const std::uint32_t c = utf8_code_point(character);
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out += '\\';
      out += character;
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (is_printable(c)) {
      out += character;
    } else {
      out += c < 0x100 ? "\\x" + hex(c, 2) : c < 0x10000 ? "\\u" + hex(c, 4) : "\\U" + hex(c, 8);
    }
  }
  return out + quote;
}

class Printer {
 public:
  explicit Printer(Budget& budget) : budget_(budget) {}
  std::string take() { return std::move(out_); }

  void repr(const Value& value) {
    budget_.step();
    if (value.is_undefined()) return add("Undefined");
    if (value.is_none()) return add("None");
    if (value.is_bool()) return add(value.flag() ? "True" : "False");
    if (value.is_integer()) return add(std::to_string(value.integer()));
    if (value.is_float()) return add(float_text(value.number()));
    if (const std::string* text = value.string()) return add(quoted(*text));
    if (const List* list = value.list()) {
      add(list->is_tuple ? "(" : "[");
      bool first = true;
      for (const Value& item : list->items) {
        if (!first) add(", ");
        first = false;
        repr(item);
      }
      return add(!list->is_tuple ? "]" : list->items.size() == 1 ? ",)" : ")");
    }
    if (const Dict* dict = value.dict()) {
      add("{");
      bool first = true;
      for (const auto& [key, item] : dict->items) {
        if (!first) add(", ");
        first = false;
        repr(key);
        add(": ");
        repr(item);
      }
      return add("}");
    }
    fault("printing a ", value.type_name(), " is not supported");
  }

  void json(const Value& value, const JsonStyle& style, int level) {
    budget_.step();
    if (value.is_none()) return add("null");
    if (value.is_bool()) return add(value.flag() ? "true" : "false");
    if (value.is_integer()) return add(std::to_string(value.integer()));
    if (value.is_float()) return add(json_float(value.number()));
    if (const std::string* text = value.string()) return add(json_string(*text, style.ensure_ascii));
    if (const List* list = value.list()) {
      if (list->items.empty()) return add("[]");
      add("[");
      for (std::size_t i = 0; i < list->items.size(); ++i) {
        start_item(i, style, level + 1);
        json(list->items[i], style, level + 1);
      }
      end_items(style, level);
      return add("]");
    }
    if (const Dict* dict = value.dict()) {
      if (dict->items.empty()) return add("{}");
      std::vector<const std::pair<Value, Value>*> items;
      for (const auto& item : dict->items) items.push_back(&item);
      if (style.sort_keys) {
        std::stable_sort(items.begin(), items.end(),
                         [&](const auto* a, const auto* b) { return less(a->first, b->first, budget_); });
      }
      add("{");
      for (std::size_t i = 0; i < items.size(); ++i) {
        start_item(i, style, level + 1);
        add(json_string(key_text(items[i]->first), style.ensure_ascii));
        add(style.key_separator);
        json(items[i]->second, style, level + 1);
      }
      end_items(style, level);
      return add("}");
    }
    fault("Object of type ", value.type_name(), " is not JSON serializable");
  }

 private:
  void add(std::string_view text) {
    budget_.allocate(text.size());
    out_ += text;
  }
  void line(const JsonStyle& style, int level) {
    if (!style.indent) return;
    add("\n");
    for (int i = 0; i < level; ++i) add(*style.indent);
  }
  void start_item(std::size_t i, const JsonStyle& style, int level) {
    if (i > 0) add(style.item_separator);
    line(style, level);
  }
  void end_items(const JsonStyle& style, int level) { line(style, level); }

  static std::string json_float(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return float_text(value);
  }
  static std::string key_text(const Value& key) {
    if (const std::string* text = key.string()) return *text;
    if (key.is_none()) return "null";
    if (key.is_bool()) return key.flag() ? "true" : "false";
    if (key.is_integer()) return std::to_string(key.integer());
    if (key.is_float()) return json_float(key.number());
    fault("keys must be str, int, float, bool or None, not ", key.type_name());
  }
  static std::string json_string(const std::string& text, bool ensure_ascii) {
    std::string out = "\"";
    for (const std::string_view character : characters(text)) {
      const std::uint32_t c = utf8_code_point(character);
      constexpr std::string_view kNamed = "\"\\\n\r\t\f\b", kNames = "\"\\nrtfb";
      if (const std::size_t at = c < 0x80 ? kNamed.find(static_cast<char>(c)) : kNamed.npos; at != kNamed.npos) {
        out += {'\\', kNames[at]};
      } else if (c < 0x20 || (ensure_ascii && c >= 0x7f && c < 0x10000 && c != 0x7f)) {
        out += "\\u" + hex(c, 4);
      } else if (ensure_ascii && c >= 0x10000) {
        out += "\\u" + hex(0xd800 + ((c - 0x10000) >> 10), 4) + "\\u" + hex(0xdc00 + ((c - 0x10000) & 0x3ff), 4);
      } else {
        out += character;
      }
    }
    return out + '"';
  }

  Budget& budget_;
  std::string out_;
};

}  // namespace

std::string repr(const Value& value, Budget& budget) {
  Printer printer(budget);
  printer.repr(value);
  return printer.take();
}

std::string str(const Value& value, Budget& budget) {
  if (value.is_undefined()) return "";
  if (const std::string* text = value.string()) {
    budget.allocate(text->size());
    return *text;
  }
  return repr(value, budget);
}

std::string to_json_text(const Value& value, const JsonStyle& style, Budget& budget) {
  Printer printer(budget);
  printer.json(value, style, 0);
  return printer.take();
}

}  // namespace moh::text::jinja
