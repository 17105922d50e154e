#include "moh/eval/tasks/shared_forms.h"

#include <algorithm>

#include "moh/eval/python_text.h"

namespace moh::eval {

bool is_query_form(const Record& record) { return record.has("query") && record.has("gold"); }

Document read_query_form(const Record& record) {
  Document document;
  document.choices = record.texts("choices");
  document.gold = record.index(record.integer("gold"), document.choices.size());
  return document;
}

std::string without_beginning(const Record& record, const std::string& text, const std::string& beginning) {
  if (!text.starts_with(beginning)) record.refuse("`query` must begin with `" + beginning + "`");
  return text.substr(beginning.size());
}

Document read_answer_key(const Record& record) {
  const Record choices = record.object("choices");
  Document document;
  document.choices = choices.texts("text");
  const auto labels = choices.texts("label");
  const std::string key(lstrip(record.text("answerKey")));
  const auto found = std::find(labels.begin(), labels.end(), key);
  if (found == labels.end()) record.refuse("`answerKey` is none of the labels of `choices`");
  document.gold = record.index(found - labels.begin(), document.choices.size());
  return document;
}

Document lettered(const std::string& question, const std::vector<std::string>& answers, const std::string& answer_word,
                  int gold) {
  Document document;
  document.prompt = std::string(strip(question)) + "\n";
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const std::string letter(1, static_cast<char>('A' + i));
    document.prompt += letter + ". " + answers[i] + "\n";
    document.choices.push_back(letter);
  }
  document.prompt += answer_word;
  document.gold = gold;
  return document;
}

int letter_index(const Record& record, const std::string& letter) {
  if (letter.size() != 1 || letter[0] < 'A' || letter[0] > 'D') {
    record.refuse("the answer must be A, B, C or D, got `" + letter.substr(0, 20) + "`");
  }
  return letter[0] - 'A';
}

}  // namespace moh::eval
