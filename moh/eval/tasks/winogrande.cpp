// WinoGrande: who is meant. Each option is put into the sentence up to the gap, and what follows the gap is scored.
#include "moh/eval/python_text.h"
#include "moh/eval/task.h"

namespace moh::eval {
namespace {

Document read(const Record& record) {
  Document document;
  if (record.has("context_options")) {
    document.choices = record.texts("context_options");
    document.targets = {record.text("continuation")};
    document.gold = record.index(record.integer("gold"), document.choices.size());
    return document;
  }
  const std::string sentence = record.text("sentence");
  const std::size_t gap = sentence.find('_');
  if (gap == std::string::npos) record.refuse("`sentence` has no gap `_`");
  for (const char* option : {"option1", "option2"}) {
    document.choices.push_back(sentence.substr(0, gap) + record.text(option));
  }
  document.targets = {std::string(strip(sentence.substr(gap + 1)))};
  document.gold = record.index(record.integer("answer") - 1, 2);
  return document;
}

const RegisteredTask winogrande{{.name = "winogrande",
                                 .kind = Kind::kContexts,
                                 .split = "validation",
                                 .files = {"winogrande/winogrande_*"},
                                 .evaluation_files = {"winogrande/winogrande", "winogrande/dev"},
                                 .read = read,
                                 .leaves_document_out = true}};

}  // namespace
}  // namespace moh::eval
