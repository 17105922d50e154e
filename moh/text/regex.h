// Regular expressions over UTF-8 on PCRE2, compiled to machine code. Patterns are written as tokenizer files write them
// (Oniguruma's or Rust's syntax), where \s, \w and scripts mean what Unicode says and not what Perl does.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace moh::text {

class Regex {
 public:
  // `place` begins the error of a pattern that cannot be read: "[tokenizer] FILE: ".
  Regex(const std::string& pattern, const std::string& place);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Working memory of one thread, good for any Regex.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class Regex;
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

  // First match at or after byte `from` of well-formed UTF-8: its begin and end. Error: a pattern that needs too many
  // steps on this text.
  std::optional<std::pair<std::size_t, std::size_t>> find(std::string_view text, std::size_t from,
                                                          Scratch& scratch) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The same pattern in PCRE2's words (tests look at it).
std::string pcre2_pattern(std::string_view pattern, const std::string& place);
// A pattern that matches just this text.
std::string quoted_pattern(std::string_view text);

}  // namespace moh::text
