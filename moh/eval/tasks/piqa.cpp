// PIQA: which of two ways reaches a goal.
#include <filesystem>

#include "moh/base/error.h"
#include "moh/eval/python_text.h"
#include "moh/eval/task.h"

namespace moh::eval {
namespace {

// The authors keep the answers in a file of their own, X-labels.lst beside X.jsonl, a line each.
std::vector<Record> load(const std::string& path) {
  std::vector<Record> records = read_json_lines(path);
  const std::string labels_path = path.substr(0, path.rfind(".jsonl")) + "-labels.lst";
  if (records.empty() || records[0].has("label") || !std::filesystem::exists(labels_path)) return records;
  const std::string text = read_text(labels_path);
  const auto labels = split(rstrip(text), "\n");
  MOH_CHECK(labels.size() == records.size(), "[eval] ", labels_path, " has ", labels.size(), " labels for ",
            records.size(), " records of ", path);
  std::vector<Record> labelled;
  for (std::size_t i = 0; i < records.size(); ++i) {
    Json fields = records[i].fields();
    fields["label"] = std::string(strip(labels[i]));
    labelled.emplace_back(std::move(fields), labels_path + ", line " + std::to_string(i + 1));
  }
  return labelled;
}

const RegisteredTask piqa{{.name = "piqa",
                           .metrics = {"acc", "acc_norm"},
                           .split = "validation",
                           .load = load,
                           .read =
                               [](const Record& record) {
                                 Document document;
                                 document.prompt = "Question: " + record.text("goal") + "\nAnswer:";
                                 document.choices = {record.text("sol1"), record.text("sol2")};
                                 document.gold = record.index(record.integer("label"), 2);
                                 return document;
                               },
                           .leaves_document_out = true}};

}  // namespace
}  // namespace moh::eval
