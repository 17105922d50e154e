// Operators of Python on the values of templates.
#include <algorithm>
#include <cmath>

#include "moh/text/jinja_interpreter.h"

namespace moh::text::jinja {
namespace {

[[noreturn]] void no_operator(std::string_view symbol, const Value& left, const Value& right) {
  if (left.is_undefined()) fault(left.why_undefined());
  if (right.is_undefined()) fault(right.why_undefined());
  fault("unsupported operand type(s) for ", symbol, ": '", left.type_name(), "' and '", right.type_name(), "'");
}

Value integer_result(std::string_view symbol, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  const bool overflows = symbol == "+"   ? __builtin_add_overflow(a, b, &result)
                         : symbol == "-" ? __builtin_sub_overflow(a, b, &result)
                                         : __builtin_mul_overflow(a, b, &result);
  if (overflows) fault("integers of more than 64 bits are not supported");
  return result;
}

// Rounded towards minus infinity, as Python's.
Value divide_integers(std::string_view symbol, std::int64_t a, std::int64_t b) {
  if (b == 0) fault("division by zero");
  if (a == INT64_MIN && b == -1) fault("integers of more than 64 bits are not supported");
  std::int64_t quotient = a / b, rest = a % b;
  if (rest != 0 && (rest < 0) != (b < 0)) {
    --quotient;
    rest += b;
  }
  return symbol == "//" ? quotient : rest;
}

Value power(const Value& left, const Value& right) {
  if (!left.is_integer() || !right.is_integer() || right.integer() < 0) {
    if (left.number() == 0 && right.number() < 0) fault("0.0 cannot be raised to a negative power");
    const double result = std::pow(left.number(), right.number());
    if (std::isnan(result) && left.number() < 0) fault("complex numbers are not supported");
    return result;
  }
  std::int64_t result = 1, base = left.integer();
  std::int64_t exponent = right.integer();
  if (base == 0 || base == 1) return exponent == 0 ? std::int64_t{1} : base;
  if (base == -1) return exponent % 2 == 0 ? std::int64_t{1} : base;
  for (; exponent > 0; --exponent)
    if (__builtin_mul_overflow(result, base, &result)) fault("integers of more than 64 bits are not supported");
  return result;
}

Value arithmetic(std::string_view symbol, const Value& left, const Value& right) {
  if (symbol == "**") return power(left, right);
  if (symbol == "/") {
    if (right.number() == 0) fault("division by zero");
    return left.number() / right.number();
  }
  const bool integers = left.is_integer() && right.is_integer();
  if (symbol == "//" || symbol == "%") {
    if (integers) return divide_integers(symbol, left.integer(), right.integer());
    const double a = left.number(), b = right.number();
    if (b == 0) fault("float division by zero");
    double rest = std::fmod(a, b);
    if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
    if (symbol == "%") return rest;
    return std::floor((a - rest) / b + 0.5);
  }
  if (integers) return integer_result(symbol, left.integer(), right.integer());
  const double a = left.number(), b = right.number();
  return symbol == "+" ? a + b : symbol == "-" ? a - b : a * b;
}

Value repeat(const Value& object, std::int64_t count, Budget& budget) {
  const auto times = static_cast<std::uint64_t>(std::max<std::int64_t>(count, 0));
  const std::string* text = object.string();
  const std::uint64_t size = text != nullptr ? text->size() : object.list()->items.size();
  if (size > 0 && times > (std::uint64_t{1} << 40) / size) fault("the template makes too much text");
  budget.step(size == 0 ? 1 : times);
  if (text != nullptr) {
    budget.allocate(size * times);
    std::string out;
    for (std::uint64_t i = 0; size > 0 && i < times; ++i) out += *text;
    return Value(std::move(out));
  }
  budget.allocate(size * times * sizeof(Value));
  std::vector<Value> items;
  for (std::uint64_t i = 0; size > 0 && i < times; ++i)
    items.insert(items.end(), object.list()->items.begin(), object.list()->items.end());
  return make_list(std::move(items), budget, object.list()->is_tuple);
}

// "%s of %s" % (a, b), with %s, %d, %i, %r and %% alone.
Value format(const std::string& text, const Value& given, Budget& budget) {
  std::vector<Value> values;
  if (given.list() != nullptr && given.list()->is_tuple) {
    values = given.list()->items;
  } else {
    values.push_back(given);
  }
  std::size_t used = 0;
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const char kind = ++i < text.size() ? text[i] : '\0';
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (std::string_view("sdir").find(kind) == std::string_view::npos || kind == '\0')
      fault("only %s, %d, %i, %r and %% are supported in a format");
    if (used == values.size()) fault("not enough arguments for format string");
    const Value& value = values[used++];
    if (kind == 's' || kind == 'r') {
      out += kind == 's' ? str(value, budget) : repr(value, budget);
    } else if (value.is_number()) {
      out += value.is_integer() ? std::to_string(value.integer())
                                : repr(static_cast<std::int64_t>(value.number()), budget);
    } else {
      fault("%", std::string(1, kind), " format: a number is required, not ", value.type_name());
    }
  }
  if (used < values.size() && given.dict() == nullptr) fault("not all arguments converted during string formatting");
  return make_string(std::move(out), budget);
}

}  // namespace

Value binary(std::string_view symbol, const Value& left, const Value& right, Budget& budget) {
  if (symbol == "~") {
    std::string text = str(left, budget);
    text += str(right, budget);
    return make_string(std::move(text), budget);
  }
  if (left.is_number() && right.is_number()) return arithmetic(symbol, left, right);
  const std::string *a = left.string(), *b = right.string();
  if (symbol == "+" && a != nullptr && b != nullptr) {
    budget.allocate(a->size() + b->size() + 48);
    return Value(*a + *b);
  }
  if (symbol == "%" && a != nullptr) return format(*a, right, budget);
  if (symbol == "+" && left.list() != nullptr && right.list() != nullptr &&
      left.list()->is_tuple == right.list()->is_tuple) {
    budget.step(left.list()->items.size() + right.list()->items.size());
    budget.allocate((left.list()->items.size() + right.list()->items.size()) * sizeof(Value));
    std::vector<Value> items = left.list()->items;
    items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
    return make_list(std::move(items), budget, left.list()->is_tuple);
  }
  if (symbol == "*") {
    if ((a != nullptr || left.list() != nullptr) && right.is_integer()) return repeat(left, right.integer(), budget);
    if ((b != nullptr || right.list() != nullptr) && left.is_integer()) return repeat(right, left.integer(), budget);
  }
  no_operator(symbol, left, right);
}

Value negate(std::string_view symbol, const Value& value) {
  if (value.is_undefined()) fault(value.why_undefined());
  if (!value.is_number()) fault("bad operand type for unary ", symbol, ": '", value.type_name(), "'");
  if (value.is_float()) return symbol == "-" ? -value.number() : value.number();
  return integer_result(symbol, 0, value.integer());
}

Value slice(const Value& object, const Value& first, const Value& last, const Value& step_value, Budget& budget) {
  const std::string* text = object.string();
  if (text == nullptr && object.list() == nullptr) fault("'", object.type_name(), "' object has no slices");
  for (const Value* part : {&first, &last, &step_value}) {
    if (!part->is_none() && !part->is_integer())
      fault("slice indices must be integers or none, not ", part->type_name());
  }
  std::vector<std::string_view> letters;
  if (text != nullptr) {
    budget.step(text->size());
    letters = characters(*text);
  }
  const auto size = static_cast<std::int64_t>(text != nullptr ? letters.size() : object.list()->items.size());
  const std::int64_t step = step_value.is_none() ? 1 : step_value.integer();
  if (step == 0) fault("slice step cannot be zero");
  const auto place = [&](const Value& value, std::int64_t otherwise) {
    if (value.is_none()) return otherwise;
    std::int64_t at = value.integer();
    if (at < 0) at = std::max(at + size, std::int64_t{-1});
    if (step > 0) return std::clamp<std::int64_t>(at, 0, size);
    return std::min(at, size - 1);
  };
  const std::int64_t begin = place(first, step > 0 ? 0 : size - 1), end = place(last, step > 0 ? size : -1);
  std::string out;
  std::vector<Value> items;
  for (__int128 i = begin; step > 0 ? i < end : i > end; i += step) {
    const auto at = static_cast<std::size_t>(i);
    if (text != nullptr) {
      out += letters[at];
    } else {
      items.push_back(object.list()->items[at]);
    }
  }
  if (text != nullptr) return make_string(std::move(out), budget);
  budget.step(items.size());
  return make_list(std::move(items), budget, object.list()->is_tuple);
}

}  // namespace moh::text::jinja
