// GSM8K: grade-school mathematics; the number after "####" is compared, or, leniently, the last number.
#include <algorithm>

#include "moh/eval/python_text.h"
#include "moh/eval/task.h"

namespace moh::eval {
namespace {

constexpr const char* kNothing = "[invalid]";
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// #### (\-?[0-9\.\,]+), the first one
std::string after_hashes(const std::string& text) {
  const std::string mark = "#### ";
  for (std::size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at + 1)) {
    const std::size_t start = at + mark.size();
    const std::size_t digits = start + (start < text.size() && text[start] == '-' ? 1 : 0);
    std::size_t end = digits;
    while (end < text.size() && (is_digit(text[end]) || text[end] == '.' || text[end] == ',')) ++end;
    if (end > digits) return text.substr(start, end - start);
  }
  return kNothing;
}

// (-?[$0-9.,]{2,})|(-?[0-9]+), the last one
std::string last_number(const std::string& text) {
  const auto in_number = [&](std::size_t i) {
    return i < text.size() && (is_digit(text[i]) || text[i] == '$' || text[i] == '.' || text[i] == ',');
  };
  std::string last = kNothing;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t start = at + (text[at] == '-' ? 1 : 0);
    std::size_t end = start;
    while (in_number(end)) ++end;
    const bool found = end - start >= 2 || (end - start == 1 && is_digit(text[start]));
    if (found) last = text.substr(at, end - at);
    at = found ? end : at + 1;
  }
  return last;
}

// Commas, dollars, all up to the last "#### " and a last full stop count for nothing, nor does case.
std::string normalized(std::string text) {
  std::erase_if(text, [](char c) { return c == ',' || c == '$'; });
  const std::size_t mark = text.rfind("#### ");
  if (mark != std::string::npos) text.erase(0, mark + 5);
  const bool line_end = text.ends_with('\n');
  const std::size_t stop = text.size() - (line_end ? 2 : 1);
  if (text.size() > (line_end ? 1u : 0u) && text[stop] == '.') text.erase(stop, 1);
  return lower(text);
}

const RegisteredTask gsm8k{
    {.name = "gsm8k",
     .version = 3,
     .kind = Kind::kGenerate,
     .metrics = {"exact_match"},
     .files = {"gsm8k/main/*"},
     .read =
         [](const Record& record) {
           Document document;
           document.prompt = "Question: " + record.text("question") + "\nAnswer:";
           document.targets = {record.text("answer")};
           return document;
         },
     .default_shots = 5,
     .until = {"Question:", "</s>", "<|im_end|>"},
     .filters = {{"strict-match", after_hashes}, {"flexible-extract", last_number}},
     .matches = [](const std::string& text,
                   const std::vector<std::string>& answers) { return normalized(text) == normalized(answers[0]); }}};

}  // namespace
}  // namespace moh::eval
