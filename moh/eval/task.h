// A benchmark: where its records lie, what is asked of the model about each, and how the answers are scored. Names,
// prompts and scores are those of lm-evaluation-harness 0.4.13. moh/eval/tasks/ has a file for each, which registers
// it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moh/eval/records.h"

namespace moh::eval {

struct Document {
  std::string prompt;                     // what stands before the answer
  std::vector<std::string> choices;       // kChoices: the answers; kContexts: the texts before `targets`[0]
  int gold = 0;                           // index of the right choice
  std::vector<std::string> targets;       // the right answers where there are no choices
  std::vector<std::int64_t> labels = {};  // 1 for every true choice, where several are
  Json record = {};                       // as it was read
};

enum class Kind {
  kChoices,        // log-likelihood of each choice after the prompt
  kContexts,       // log-likelihood of one text after each choice
  kLogLikelihood,  // of the target after the prompt
  kGenerate        // greedy text until a stop string
};

enum class Score { kBest, kTrueMass };  // kTrueMass: the probability of all true choices among all

// What is cut from a generated text before it is compared.
struct Filter {
  std::string name;
  std::function<std::string(const std::string&)> apply;
};

struct Task {
  std::string name;
  std::string alias = {};  // "": the name
  double version = 1;
  Kind kind = Kind::kChoices;
  std::vector<std::string> metrics = {"acc"};

  // File names without extension, relative to the folder of all data, beside NAME/*; "*" stands for the names of a
  // split (kSplits). Where the folder is this task's own, the first folder of a name is left out.
  std::string split = "test";  // what is evaluated
  std::string shots_split = "train";
  std::vector<std::string> files = {};
  std::vector<std::string> evaluation_files = {};  // of the evaluated split alone
  std::function<std::vector<Record>(const std::string& path)> load = read_json_lines;
  std::function<Document(const Record&)> read = {};

  std::string description = "", target_delimiter = " ", shots_delimiter = "\n\n";
  int default_shots = 0;
  bool takes_shots = true;
  bool first_shots = false;  // the first ones, instead of drawn ones
  bool is_subject = false;   // one of many in a folder
  // Draws one example more and leaves the document itself out.
  bool leaves_document_out = false;

  Score score = Score::kBest;
  std::vector<std::string> until = {};
  std::vector<Filter> filters = {};  // empty: "none", which is the text itself
  // Whether a text counts as one of the answers.
  std::function<bool(const std::string& text, const std::vector<std::string>& answers)> matches = {};
};

// A name for several tasks; scores are averaged over all documents.
struct TaskGroup {
  std::string name, alias, version;
  std::vector<std::string> tasks, metrics;
};

std::vector<Task>& tasks();
std::vector<TaskGroup>& task_groups();
struct RegisteredTask {
  explicit RegisteredTask(Task task) { tasks().push_back(std::move(task)); }
};

// The tasks that names stand for, without repetitions, and the groups asked for (with those inside them). Error: an
// unknown name.
struct Selection {
  std::vector<const Task*> tasks;
  std::vector<const TaskGroup*> groups;
};
Selection select_tasks(const std::vector<std::string>& names);

// Documents of a split of a task. `data` is a folder, or the file of the evaluated split. Error: no such file, a record
// that does not fit, no record at all.
std::vector<Document> load_documents(const Task& task, const std::string& split, const std::string& data);

}  // namespace moh::eval
