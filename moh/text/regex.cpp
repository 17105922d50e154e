#include "moh/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cctype>

#include "moh/base/error.h"
#include "moh/io/name_text.h"

namespace moh::text {
namespace {

constexpr std::size_t kMaxPatternBytes = 1 << 14;
constexpr std::uint32_t kMaxNesting = 64;
// Steps of one match, from one place: a line of megabytes of spaces needs some per byte, and a short text has many
// words.
constexpr std::size_t kStepsOfAnyText = 100'000, kStepsPerByte = 64, kMaxSteps = 20'000'000;
constexpr std::size_t kMaxJitStack = 1 << 20;
constexpr std::uint32_t kMaxHeapKilobytes = 1 << 15;  // of the interpreter, where the machine-code stack was too small

bool is_ascii_alnum(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }
bool is_hex(char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// One pass over a pattern that rewrites what PCRE2 would take in another sense, and refuses what it cannot express.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& place) : pattern_(pattern), place_(place) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_member();
      } else if (c == '[') {
        in_class_ = true;
        copy(1);
        if (peek() == '^') copy(1);
        if (peek() == ']') refuse("`]` as the first member of a set");
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        repeat();
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  char peek(std::size_t ahead = 0) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  void copy(std::size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }
  void replace(std::size_t count, std::string_view with) {
    out_ += with;
    at_ += count;
  }
  [[noreturn]] void refuse(const std::string& what) const {
    fail(place_, "cannot read the split pattern at character ", at_, ": ", io::one_line(what), " is not supported");
  }

  void escape() {
    // Oniguruma's word characters, found by trying all: Unicode's, and the numbers of Latin-1.
    // The string literals are joined by the compiler: g++ 12 warns of std::string's operator+ here.
#define MOH_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
    switch (const char c = peek(1)) {
      case 's':
        return replace(2, "\\p{White_Space}");
      case 'S':
        return replace(2, "\\P{White_Space}");
      case 'd':
        return replace(2, "\\p{Nd}");
      case 'D':
        return replace(2, "\\P{Nd}");
      case 'w':
        return replace(2, in_class_ ? MOH_WORD : "[" MOH_WORD "]");
      case 'W':
        if (in_class_) refuse("\\W in a set");
        return replace(2, "[^" MOH_WORD "]");
      case 'p':
      case 'P':
        return property();
      case 'n':
      case 'r':
      case 't':
      case 'f':
        return copy(2);
      case 'v':
        return replace(2, "\\x0b");
      case 'x':
        if (peek(2) == '{') {
          const std::size_t end = pattern_.find('}', at_);
          if (end == std::string_view::npos) refuse("\\x{ without an end");
          return copy(end + 1 - at_);
        }
        if (!is_digit(peek(2)) || peek(2) > '7' || !is_hex(peek(3))) refuse("a byte that is not ASCII");
        return copy(4);
      case 'u': {
        const std::string_view digits = pattern_.substr(std::min(at_ + 2, pattern_.size()), 4);
        if (digits.size() != 4 || !std::all_of(digits.begin(), digits.end(), is_hex)) refuse("\\u without four digits");
        return replace(6, "\\x{" + std::string(digits) + "}");
      }
      case 'A':
      case 'z':
        if (in_class_) refuse("an anchor in a set");
        return copy(2);
      default:
        if (c == '\0') refuse("a backslash at the end");
        if (is_ascii_alnum(c)) refuse(std::string("\\") + c);
        copy(2);  // of a character of several bytes the rest follows as it is
    }
#undef MOH_WORD
  }

  // \p{L}, \p{^Lu}, \pL, \p{Han}: PCRE2 would take a script for all scripts that use the character.
  void property() {
    if (peek(2) != '{') return copy(3);
    const std::size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) refuse("\\p{ without an end");
    std::string_view name = pattern_.substr(at_ + 3, end - at_ - 3);
    bool negated = peek(1) == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    out_ += negated ? "\\P{" : "\\p{";
    if (name.size() > 2 && name != "Any" && name != "Alphabetic" && name != "White_Space") out_ += "sc:";
    out_ += name;
    out_ += '}';
    at_ = end + 1;
  }

  void class_member() {
    const char c = peek();
    if (c == '[') refuse("a set within a set");
    if (c == '&' && peek(1) == '&') refuse("&&");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  void group() {
    if (peek(1) == '*') refuse("(*");
    if (peek(1) != '?') return copy(1);
    std::size_t end = at_ + 2;
    while (end < pattern_.size() && (pattern_[end] == 'i' || pattern_[end] == '-')) ++end;
    const std::string_view rest = pattern_.substr(end);
    const bool has_flags = end > at_ + 2;
    const bool known = has_flags ? rest.starts_with(':') || rest.starts_with(')')
                                 : rest.starts_with(':') || rest.starts_with('=') || rest.starts_with('!') ||
                                       rest.starts_with('>') || rest.starts_with("<=") || rest.starts_with("<!");
    if (!known) refuse("this kind of group");
    copy(end - at_);
  }

  // {2}, {1,3}, {,3}; after them a + is possessive in PCRE2 and a second repeat elsewhere.
  void repeat() {
    const std::size_t end = pattern_.find('}', at_);
    const std::string_view inside =
        end == std::string_view::npos ? std::string_view() : pattern_.substr(at_ + 1, end - at_ - 1);
    const bool is_repeat = !inside.empty() && inside != "," &&
                           std::all_of(inside.begin(), inside.end(), [](char c) { return is_digit(c) || c == ','; });
    if (!is_repeat) return copy(1);
    if (inside.front() == ',') {
      out_ += "{0";
      ++at_;
    }
    copy(end + 1 - at_);
    if (peek() == '+') refuse("a + after {n,m}");
  }

  std::string_view pattern_;
  const std::string& place_;
  std::string out_;
  std::size_t at_ = 0;
  bool in_class_ = false;
};

std::string message_of(int code) {
  char buffer[160];
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(buffer), sizeof buffer);
  return buffer;
}

PCRE2_SPTR pointer(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

std::string pcre2_pattern(std::string_view pattern, const std::string& place) {
  return Translator(pattern, place).run();
}

std::string quoted_pattern(std::string_view text) {
  std::string quoted;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x80 && !is_ascii_alnum(c) && c != '\0') quoted += '\\';
    quoted += c;
  }
  return quoted;
}

struct Regex::Impl {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string pattern, place;
  ~Impl() { pcre2_code_free(code); }
};

struct Regex::Scratch::Impl {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(1 << 15, kMaxJitStack, nullptr);
  Impl() {
    pcre2_set_heap_limit(context, kMaxHeapKilobytes);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Impl() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

Regex::Scratch::Scratch() : impl_(std::make_unique<Impl>()) {}
Regex::Scratch::~Scratch() = default;

Regex::Regex(const std::string& pattern, const std::string& place) : impl_(std::make_unique<Impl>()) {
  MOH_CHECK(pattern.size() <= kMaxPatternBytes, place, "the split pattern has ", pattern.size(),
            " bytes, expected at most ", kMaxPatternBytes);
  impl_->pattern = pattern;
  impl_->place = place;
  const std::string translated = pcre2_pattern(pattern, place);
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, kMaxNesting);
  int error = 0;
  PCRE2_SIZE offset = 0;
  impl_->code = pcre2_compile(pointer(translated), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE | PCRE2_NEVER_BACKSLASH_C,
                              &error, &offset, context);
  pcre2_compile_context_free(context);
  MOH_CHECK(impl_->code != nullptr, place, "cannot read the split pattern: ", message_of(error), " (at byte ", offset,
            " of ", io::one_line(translated), ")");
  impl_->jit = pcre2_jit_compile(impl_->code, PCRE2_JIT_COMPLETE) == 0;
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

std::optional<std::pair<std::size_t, std::size_t>> Regex::find(std::string_view text, std::size_t from,
                                                               Scratch& scratch) const {
  const auto& memory = *scratch.impl_;
  const std::size_t steps = std::min(kStepsOfAnyText + kStepsPerByte * text.size(), kMaxSteps);
  pcre2_set_match_limit(memory.context, static_cast<std::uint32_t>(steps));
  int code = PCRE2_ERROR_JIT_STACKLIMIT;
  if (impl_->jit) {
    code =
        pcre2_jit_match(impl_->code, pointer(text), text.size(), from, PCRE2_NO_UTF_CHECK, memory.data, memory.context);
  }
  if (code == PCRE2_ERROR_JIT_STACKLIMIT) {
    code = pcre2_match(impl_->code, pointer(text), text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, memory.data,
                       memory.context);
  }
  if (code == PCRE2_ERROR_NOMATCH) return std::nullopt;
  MOH_CHECK(code >= 0, impl_->place, "the split pattern gave up at byte ", from, " of a text of ", text.size(), ": ",
            message_of(code));
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(memory.data);
  return std::pair<std::size_t, std::size_t>(found[0], found[1]);
}

}  // namespace moh::text
