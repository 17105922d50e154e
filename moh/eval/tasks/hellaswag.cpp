// HellaSwag: which sentence goes on with a scene.
#include "moh/eval/python_text.h"
#include "moh/eval/task.h"

namespace moh::eval {
namespace {

// The marks that WikiHow's pages leave in the texts are taken out: " [title]" ends a sentence, "[...]" within a line
// goes.
std::string cleaned(const std::string& text) {
  const std::string marked = replace(strip(text), " [title]", ". ");
  std::string rest;
  for (std::size_t at = 0; at < marked.size();) {
    const std::size_t end = marked[at] == '[' ? marked.find_first_of("]\n", at) : std::string::npos;
    if (end != std::string::npos && marked[end] == ']') {
      at = end + 1;
    } else {
      rest += marked[at++];
    }
  }
  return replace(rest, "  ", " ");
}

Document read(const Record& record) {
  Document document;
  const auto context = [&](const char* name) { return record.has(name) ? record.text(name) : std::string(); };
  document.prompt =
      cleaned(record.text("activity_label") + ": " + context("ctx_a") + " " + capitalize(context("ctx_b")));
  for (const std::string& ending : record.texts("endings")) document.choices.push_back(cleaned(ending));
  document.gold = record.index(record.integer("label"), document.choices.size());
  return document;
}

const RegisteredTask hellaswag{{.name = "hellaswag",
                                .metrics = {"acc", "acc_norm"},
                                .split = "validation",
                                .files = {"hellaswag/hellaswag_*"},
                                .evaluation_files = {"hellaswag/val_1000"},
                                .read = read,
                                .leaves_document_out = true}};

}  // namespace
}  // namespace moh::eval
