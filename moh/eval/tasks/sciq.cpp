// SciQ: science exams with a text to read first.
#include "moh/eval/python_text.h"
#include "moh/eval/task.h"

namespace moh::eval {
namespace {

const RegisteredTask sciq{{.name = "sciq", .metrics = {"acc", "acc_norm"}, .read = [](const Record& record) {
                             Document document;
                             document.prompt = std::string(lstrip(record.text("support"))) +
                                               "\nQuestion: " + record.text("question") + "\nAnswer:";
                             document.choices = {record.text("distractor1"), record.text("distractor2"),
                                                 record.text("distractor3"), record.text("correct_answer")};
                             document.gold = 3;
                             return document;
                           }}};

}  // namespace
}  // namespace moh::eval
