// OpenBookQA: elementary science that needs a fact from outside the question.
#include "moh/eval/tasks/shared_forms.h"

namespace moh::eval {
namespace {

const RegisteredTask openbookqa{{.name = "openbookqa",
                                 .metrics = {"acc", "acc_norm"},
                                 .evaluation_files = {"openbookqa/openbook_qa"},
                                 .read = [](const Record& record) {
                                   const bool query = is_query_form(record);
                                   Document document = query ? read_query_form(record) : read_answer_key(record);
                                   document.prompt = record.text(query ? "query" : "question_stem");
                                   return document;
                                 }}};

}  // namespace
}  // namespace moh::eval
