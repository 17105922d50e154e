// LogiQA: reasoning from a passage.
#include "moh/base/error.h"
#include "moh/eval/python_text.h"
#include "moh/eval/task.h"

namespace moh::eval {
namespace {

// The authors' text files: records between blank lines, each the answer's letter, the passage, the question and the
// options behind "A." to "D.". A space follows every full stop, as in the data set that the harness reads.
std::vector<Record> load(const std::string& path) {
  if (!has_extension(path, ".txt")) return read_json_lines(path);
  const auto spaced = [](std::string_view text) { return std::string(strip(replace(text, ".", ". "))); };
  std::vector<Record> records;
  const std::string text = replace(read_text(path), "\r\n", "\n");
  for (const std::string_view part : split(strip(text), "\n\n")) {
    const auto lines = split(part, "\n");
    const std::string place = path + ", record " + std::to_string(records.size() + 1);
    MOH_CHECK(lines.size() > 3, "[eval] ", place, ": needs an answer, a passage, a question and options, a line each");
    std::vector<std::string> options;
    for (std::size_t i = 3; i < lines.size(); ++i) {
      options.push_back(spaced(lines[i].substr(std::min<std::size_t>(2, lines[i].size()))));
    }
    records.emplace_back(Json{{"label", std::string(strip(lines[0]))},
                              {"context", spaced(lines[1])},
                              {"question", spaced(lines[2])},
                              {"options", options}},
                         place);
  }
  return records;
}

Document read(const Record& record) {
  Document document;
  document.choices = record.texts("options");
  document.prompt = "Passage: " + record.text("context") + "\nQuestion: " + record.text("question") + "\nChoices:\n";
  for (std::size_t i = 0; i < document.choices.size() && i < 4; ++i) {
    document.prompt += std::string(1, static_cast<char>('A' + i)) + ". " + document.choices[i] + "\n";
  }
  document.prompt += "Answer:";
  const std::string label(strip(record.text("label")));
  if (label.size() != 1) record.refuse("`label` must be a, b, c or d");
  document.gold = record.index(label[0] - 'a', document.choices.size());
  return document;
}

const RegisteredTask logiqa{{.name = "logiqa",
                             .metrics = {"acc", "acc_norm"},
                             .evaluation_files = {"logiqa/Test"},
                             .load = load,
                             .read = read}};

}  // namespace
}  // namespace moh::eval
