// ARC, easy and challenge: questions of school science.
#include "moh/eval/tasks/shared_forms.h"

namespace moh::eval {
namespace {

Document read(const Record& record) {
  Document document = is_query_form(record) ? read_query_form(record) : read_answer_key(record);
  const std::string question =
      is_query_form(record) ? without_beginning(record, record.text("query"), "Question: ") : record.text("question");
  document.prompt = "Question: " + question + "\nAnswer:";
  return document;
}

Task arc(const std::string& name, const std::string& dataset) {
  return {.name = name,
          .metrics = {"acc", "acc_norm"},
          .files = {dataset + "/*", "arc/" + name + "_*", "ai2_arc/" + dataset + "/*"},
          .evaluation_files = {"arc/" + name},
          .read = read};
}

const RegisteredTask easy{arc("arc_easy", "ARC-Easy")}, challenge{arc("arc_challenge", "ARC-Challenge")};

}  // namespace
}  // namespace moh::eval
