#include "moh/text/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "moh/text/jinja_value.h"
#include "moh/text/utf8.h"

namespace moh::text::jinja {
namespace {

using Kind = Token::Kind;
constexpr std::string_view kSpace = " \t\n\r\v\f";

bool is_space(char c) { return kSpace.find(c) != kSpace.npos; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c) || static_cast<signed char>(c) < 0;
}

std::string with_plain_line_ends(std::string_view source) {
  std::string text;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
    } else {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (text.ends_with('\n')) text.pop_back();  // keep_trailing_newline is off
  return text;
}

class Lexer {
 public:
  Lexer(std::string_view source, int& line) : text_(with_plain_line_ends(source)), rest_(text_), line_(line) {}

  std::vector<Token> run() {
    line_ = 1;
    while (!rest_.empty()) {
      const std::size_t at = next_tag();
      if (at == std::string_view::npos) {
        data(rest_);
        skip(rest_.size());
        break;
      }
      const char kind = rest_[at + 1];
      const char sign = at + 2 < rest_.size() ? rest_[at + 2] : '\0';
      data(before_tag(rest_.substr(0, at), sign, kind != '{'));
      skip(at + 2 + (sign == '-' || sign == '+'));
      starts_line_ = false;
      if (kind == '#') {
        comment();
      } else if (kind == '%' && starts_raw()) {
        raw();
      } else {
        expression(kind == '%');
      }
    }
    add(Kind::end, "");
    return std::move(tokens_);
  }

 private:
  std::size_t next_tag() const {
    for (std::size_t at = rest_.find('{'); at != rest_.npos; at = rest_.find('{', at + 1)) {
      if (at + 1 < rest_.size() && (rest_[at + 1] == '{' || rest_[at + 1] == '%' || rest_[at + 1] == '#')) return at;
    }
    return rest_.npos;
  }

  // What is left of the text before a tag.
  std::string_view before_tag(std::string_view text, char sign, bool is_block) const {
    if (sign == '-') return strip(text, false, true);
    if (sign == '+' || !is_block) return text;
    const std::size_t line = text.rfind('\n') + 1;
    if (line == 0 && !starts_line_) return text;
    return std::all_of(text.begin() + static_cast<std::ptrdiff_t>(line), text.end(), is_space) ? text.substr(0, line)
                                                                                               : text;
  }

  void skip(std::size_t count) {
    line_ += static_cast<int>(std::count(rest_.begin(), rest_.begin() + static_cast<std::ptrdiff_t>(count), '\n'));
    rest_.remove_prefix(count);
  }
  void skip_space() { skip(rest_.size() - strip(rest_, true, false).size()); }

  // Past a tag's end of `size` characters, and past what goes with it.
  void end_tag(char sign, std::size_t size, bool is_block) {
    const std::string_view before = rest_;
    skip(size);
    if (sign == '-') {
      skip_space();
    } else if (is_block && sign != '+' && rest_.starts_with('\n')) {
      skip(1);
    }
    starts_line_ = before[before.size() - rest_.size() - 1] == '\n';
  }

  void add(Kind kind, std::string_view text) {
    tokens_.push_back({.kind = kind, .text = std::string(text), .line = line_});
  }
  void data(std::string_view text) {
    if (!text.empty()) add(Kind::data, text);
  }

  void comment() {
    const std::size_t end = rest_.find("#}");
    if (end == rest_.npos) fault("a comment has no end, expected #}");
    const char sign = end > 0 ? rest_[end - 1] : '\0';
    skip(end);
    end_tag(sign, 2, true);
  }

  // At "raw %}" of "{% raw %}".
  bool starts_raw() const {
    std::string_view rest = strip(rest_, true, false);
    if (!rest.starts_with("raw")) return false;
    rest = strip(rest.substr(3), true, false);
    return rest.starts_with("%}") || rest.starts_with("-%}");
  }
  void raw() {
    const std::size_t end = rest_.find("%}");
    const bool trims = rest_[end - 1] == '-';
    skip(end + 2);
    if (trims) skip_space();
    for (std::size_t at = rest_.find("{%"); at != rest_.npos; at = rest_.find("{%", at + 1)) {
      const char sign = at + 2 < rest_.size() ? rest_[at + 2] : '\0';
      std::size_t after = at + 2 + (sign == '-' || sign == '+');
      const auto pass_space = [&] {
        while (after < rest_.size() && is_space(rest_[after])) ++after;
      };
      pass_space();
      if (!rest_.substr(std::min(after, rest_.size())).starts_with("endraw")) continue;
      after += 6;
      pass_space();
      const std::string_view close = rest_.substr(std::min(after, rest_.size()));
      const char end_sign = close.starts_with("-%}") ? '-' : close.starts_with("+%}") ? '+' : '\0';
      if (end_sign == '\0' && !close.starts_with("%}")) continue;
      data(before_tag(rest_.substr(0, at), sign, true));
      skip(after);
      end_tag(end_sign, end_sign == '\0' ? 2 : 3, true);
      return;
    }
    fault("`raw` has no end, expected {% endraw %}");
  }

  void expression(bool is_tag) {
    add(is_tag ? Kind::tag_begin : Kind::print_begin, "");
    const std::string_view close = is_tag ? "%}" : "}}";
    std::string open;  // brackets
    for (;;) {
      while (!rest_.empty() && is_space(rest_.front())) skip(1);
      if (rest_.empty()) fault("a tag has no end, expected ", close);
      if (open.empty()) {
        const char sign = rest_.front() == '-' || (is_tag && rest_.front() == '+') ? rest_.front() : '\0';
        const std::size_t at = sign == '\0' ? 0 : 1;
        if (rest_.substr(at).starts_with(close)) {
          add(is_tag ? Kind::tag_end : Kind::print_end, "");
          return end_tag(sign, at + 2, is_tag);
        }
      }
      token(open);
    }
  }

  void token(std::string& open) {
    const char c = rest_.front();
    if (is_digit(c)) return numeral();
    if (is_name(c)) {
      std::size_t size = 1;
      while (size < rest_.size() && is_name(rest_[size])) ++size;
      add(Kind::name, rest_.substr(0, size));
      return skip(size);
    }
    if (c == '"' || c == '\'') return string(c);
    constexpr std::array<std::string_view, 7> kLong = {"//", "**", "==", "!=", ">=", "<=", ""};
    std::string_view symbol = *std::find_if(kLong.begin(), kLong.end(), [&](auto s) { return rest_.starts_with(s); });
    if (symbol.empty()) symbol = rest_.substr(0, 1);
    if (symbol.size() == 1 && std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      fault("unexpected character `", rest_.substr(0, std::max<std::size_t>(1, utf8_length(rest_))), "`");
    }
    if (c == '(' || c == '[' || c == '{') open += c;
    if (c == ')' || c == ']' || c == '}') {
      const char expected = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open.empty() || open.back() != expected) fault("unexpected `", symbol, "`");
      open.pop_back();
    }
    add(Kind::symbol, symbol);
    skip(symbol.size());
  }

  void numeral() {
    std::string digits;
    std::size_t at = 0;
    const auto read_digits = [&] {
      while (at < rest_.size() &&
             (is_digit(rest_[at]) || (rest_[at] == '_' && at + 1 < rest_.size() && is_digit(rest_[at + 1])))) {
        if (rest_[at] != '_') digits += rest_[at];
        ++at;
      }
    };
    read_digits();
    bool is_float = false;
    if (at + 1 < rest_.size() && rest_[at] == '.' && is_digit(rest_[at + 1])) {
      is_float = true;
      digits += rest_[at++];
      read_digits();
    }
    if (at < rest_.size() && (rest_[at] == 'e' || rest_[at] == 'E')) {
      const std::size_t sign = at + 1 < rest_.size() && (rest_[at + 1] == '-' || rest_[at + 1] == '+');
      if (at + 1 + sign < rest_.size() && is_digit(rest_[at + 1 + sign])) {
        is_float = true;
        digits.append(rest_, at, 1 + sign);
        at += 1 + sign;
        read_digits();
      }
    }
    if (at < rest_.size() && is_name(rest_[at])) fault("number `", rest_.substr(0, at + 1), "` is not supported");
    add(is_float ? Kind::number : Kind::integer, digits);
    Token& token = tokens_.back();
    const char* const end = digits.data() + digits.size();
    const auto error = is_float ? std::from_chars(digits.data(), end, token.number).ec
                                : std::from_chars(digits.data(), end, token.integer).ec;
    if (error != std::errc()) fault("number `", digits.substr(0, 40), "` is too large");
    skip(at);
  }

  // A literal, with Python's escapes.
  void string(char quote) {
    std::string value;
    std::size_t at = 1;
    const auto code = [&](std::size_t digits) {
      std::uint32_t c = 0;
      const char* const begin = rest_.data() + std::min(at + 1, rest_.size());
      const char* const end = rest_.data() + std::min(at + 1 + digits, rest_.size());
      const auto [read, error] = std::from_chars(begin, end, c, 16);
      if (error != std::errc() || read != begin + digits || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        fault("a string has an escape that is not a character");
      append_utf8(value, c);
      at += digits;
    };
    for (;; ++at) {
      if (at >= rest_.size()) fault("a string has no end, expected ", std::string(1, quote));
      const char c = rest_[at];
      if (c == quote) break;
      if (c != '\\') {
        value += c;
        continue;
      }
      if (++at >= rest_.size()) continue;
      constexpr std::string_view kNames = "abfnrtv\\'\"", kBytes = "\a\b\f\n\r\t\v\\'\"";
      const char name = rest_[at];
      if (const std::size_t found = kNames.find(name); found != kNames.npos) {
        value += kBytes[found];
      } else if (name == 'x' || name == 'u' || name == 'U') {
        code(name == 'x' ? 2 : name == 'u' ? 4 : 8);
      } else if (name >= '0' && name <= '7') {
        std::uint32_t c8 = 0;
        std::size_t digits = 0;
        for (; digits < 3 && at + digits < rest_.size() && rest_[at + digits] >= '0' && rest_[at + digits] <= '7';
             ++digits)
          c8 = c8 * 8 + static_cast<std::uint32_t>(rest_[at + digits] - '0');
        append_utf8(value, c8);
        at += digits - 1;
      } else if (name == 'N') {
        fault("escapes by name (\\N) are not supported");
      } else if (name != '\n') {
        value += '\\';
        value += name;
      }
    }
    add(Kind::string, value);
    skip(at + 1);
  }

  std::string text_;
  std::string_view rest_;
  int& line_;
  bool starts_line_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokens_of(std::string_view source, int& line) { return Lexer(source, line).run(); }

}  // namespace moh::text::jinja
