// LAMBADA, the text that OpenAI's models were tested on: the last word of a passage.
#include "moh/eval/task.h"

namespace moh::eval {
namespace {

Document read(const Record& record) {
  const std::string text =
      record.has("text") ? record.text("text") : record.text("context") + " " + record.text("continuation");
  const std::size_t last = text.rfind(' ');
  Document document;
  if (last != std::string::npos) document.prompt = text.substr(0, last);
  document.targets = {" "};
  document.targets[0] += text.substr(last == std::string::npos ? 0 : last + 1);
  return document;
}

// There is no other split: examples, where they are asked for, come from the test split itself.
const RegisteredTask lambada{{.name = "lambada_openai",
                              .kind = Kind::kLogLikelihood,
                              .metrics = {"perplexity", "acc"},
                              .shots_split = "test",
                              .files = {"lambada/*"},
                              .evaluation_files = {"lambada/lambada_openai", "lambada/lambada_test"},
                              .read = read}};

}  // namespace
}  // namespace moh::eval
