// MMLU: questions of 57 subjects in four fields.
#include <algorithm>

#include "moh/eval/python_text.h"
#include "moh/eval/tasks/shared_forms.h"

namespace moh::eval {
namespace {

struct Field {
  const char* name;
  const char* alias;
  std::vector<const char*> subjects;
};

const std::vector<Field> kFields = {
    {"stem",
     "stem",
     {"abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
      "college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering",
      "elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
      "high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning"}},
    {"other",
     "other",
     {"business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging", "management",
      "marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting", "professional_medicine",
      "virology"}},
    {"social_sciences",
     "social sciences",
     {"econometrics", "high_school_geography", "high_school_government_and_politics", "high_school_macroeconomics",
      "high_school_microeconomics", "high_school_psychology", "human_sexuality", "professional_psychology",
      "public_relations", "security_studies", "sociology", "us_foreign_policy"}},
    {"humanities",
     "humanities",
     {"formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
      "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy",
      "prehistory", "professional_law", "world_religions"}},
};

// The authors' tables: question, four answers and a letter, without a first row of names; or question, choice0 to
// choice3 and a number, with one.
std::vector<Record> load(const std::string& path) {
  if (!has_extension(path, ".csv")) return read_json_lines(path);
  std::vector<Record> records;
  std::size_t number = 0;
  for (const auto& row : read_csv(path)) {
    ++number;
    if (number == 1 && row[0] == "question") continue;
    const std::string place = path + ", row " + std::to_string(number);
    const bool letter = !row.back().empty() && row.back()[0] >= 'A' && row.back()[0] <= 'D';
    Record record(Json{{"question", row[0]}, {"answer", row.back()}}, place);
    if (row.size() != 6) record.refuse("must be a question, four answers and the right one");
    Json fields = record.fields();
    fields["choices"] = std::vector<std::string>(row.begin() + 1, row.begin() + 5);
    if (letter) fields["answer"] = letter_index(record, row.back());
    records.emplace_back(std::move(fields), place);
  }
  return records;
}

Document read(const Record& record) {
  const auto choices = record.texts("choices");
  if (choices.size() != 4) record.refuse("`choices` must be four");
  return lettered(record.text("question"), choices, "Answer:", record.index(record.integer("answer"), 4));
}

bool add_all() {
  TaskGroup all{"mmlu", "mmlu", "2", {}, {"acc"}};
  std::vector<TaskGroup> fields;
  for (const Field& field : kFields) {
    TaskGroup group{std::string("mmlu_") + field.name, field.alias, "2", {}, {"acc"}};
    for (const std::string subject : field.subjects) {
      Task task{.name = "mmlu_" + subject,
                .alias = subject,
                .shots_split = "dev",
                .files = {"mmlu/*/" + subject + "_*", "mmlu/" + subject + "/*", "mmlu/*/" + subject},
                .load = load,
                .read = read,
                .description = "The following are multiple choice questions (with answers) about " +
                               replace(subject, "_", " ") + ".\n\n",
                .first_shots = true,
                .is_subject = true};
      group.tasks.push_back(task.name);
      all.tasks.push_back(task.name);
      tasks().push_back(std::move(task));
    }
    fields.push_back(std::move(group));
  }
  task_groups().push_back(std::move(all));
  for (TaskGroup& group : fields) task_groups().push_back(std::move(group));
  return true;
}

[[maybe_unused]] const bool added = add_all();

}  // namespace
}  // namespace moh::eval
