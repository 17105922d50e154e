// BoolQ: yes or no from a passage.
#include "moh/eval/tasks/shared_forms.h"

namespace moh::eval {
namespace {

Document read(const Record& record) {
  Document document;
  std::string passage, question;
  if (is_query_form(record)) {  // "Passage: ...\nQuestion: ...?"
    document = read_query_form(record);
    if (document.choices != std::vector<std::string>{"no", "yes"}) record.refuse("`choices` must be no and yes");
    const std::string text = without_beginning(record, record.text("query"), "Passage: ");
    const std::string mark = "\nQuestion: ";
    const std::size_t at = text.rfind(mark);
    if (at == std::string::npos || !text.ends_with('?')) record.refuse("`query` must end with a line `Question: ...?`");
    passage = text.substr(0, at);
    question = text.substr(at + mark.size(), text.size() - 1 - at - mark.size());
  } else {
    document.choices = {"no", "yes"};
    document.gold = record.index(record.integer(record.has("label") ? "label" : "answer"), 2);
    passage = record.text("passage");
    question = record.text("question");
  }
  document.prompt = passage + "\nQuestion: " + question + "?\nAnswer:";
  return document;
}

const RegisteredTask boolq{{.name = "boolq",
                            .version = 2,
                            .split = "validation",
                            .evaluation_files = {"boolq/boolq", "boolq/dev"},
                            .read = read,
                            .leaves_document_out = true}};

}  // namespace
}  // namespace moh::eval
