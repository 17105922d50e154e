#include "moh/eval/task.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "moh/base/error.h"
#include "moh/eval/python_text.h"

namespace moh::eval {
namespace {

const std::map<std::string, std::vector<std::string>> kSplits = {
    {"train", {"train"}}, {"validation", {"validation", "valid", "val"}}, {"test", {"test"}}, {"dev", {"dev"}}};

std::vector<std::string> file_names(const Task& task, const std::string& split) {
  std::vector<std::string> names;
  std::vector<std::string> patterns = {task.name + "/*"};
  patterns.insert(patterns.end(), task.files.begin(), task.files.end());
  for (const std::string& pattern : patterns) {
    for (const std::string& word : kSplits.at(split)) names.push_back(replace(pattern, "*", word));
  }
  if (split == task.split) names.insert(names.end(), task.evaluation_files.begin(), task.evaluation_files.end());
  for (std::size_t i = 0, full = names.size(); i < full; ++i) {
    const std::string inside = names[i].substr(names[i].find('/') + 1);
    if (task.is_subject && inside.find('/') == std::string::npos) continue;  // subjects would all take one file
    if (std::find(names.begin(), names.end(), inside) == names.end()) names.push_back(inside);
  }
  return names;
}

std::string document_file(const Task& task, const std::string& split, const std::string& data) {
  std::error_code error;
  if (std::filesystem::is_regular_file(data, error)) {
    MOH_CHECK(split == task.split, "[eval] ", task.name, ": examples are taken from the ", split,
              " split, but --data names one file; give the folder that holds both");
    return data;
  }
  MOH_CHECK(std::filesystem::is_directory(data, error), "[eval] there is no file or folder ", data);
  const auto names = file_names(task, split);
  const std::string path = find_file(data, names);
  if (!path.empty()) return path;
  std::string list;
  for (std::size_t i = 0; i < names.size() && i < 6; ++i) list += (i == 0 ? "" : ", ") + names[i];
  fail("[eval] ", task.name, ": ", data, " has no file of the ", split, " split; looked for ", list,
       names.size() > 6 ? ", ..." : "", " with .jsonl, .json, .csv or .txt, packed by gzip or not (docs/eval.md)");
}

}  // namespace

std::vector<Task>& tasks() {
  static std::vector<Task> all;
  return all;
}

std::vector<TaskGroup>& task_groups() {
  static std::vector<TaskGroup> all;
  return all;
}

Selection select_tasks(const std::vector<std::string>& names) {
  Selection selection;
  const auto add = [](auto& list, const auto* item) {
    if (std::find(list.begin(), list.end(), item) == list.end()) list.push_back(item);
  };
  const auto find = [](auto& all, const std::string& name) {
    const auto found = std::find_if(all.begin(), all.end(), [&](const auto& item) { return item.name == name; });
    return found == all.end() ? nullptr : &*found;
  };
  for (const std::string& name : names) {
    if (const Task* task = find(tasks(), name)) {
      add(selection.tasks, task);
      continue;
    }
    const TaskGroup* group = find(task_groups(), name);
    if (group == nullptr) {
      std::vector<std::string> known;
      std::string list;
      for (const TaskGroup& other : task_groups()) known.push_back(other.name);
      for (const Task& task : tasks()) known.push_back(task.name);
      std::sort(known.begin(), known.end());
      for (const std::string& other : known) {  // subjects would make a long list
        const bool in_group = std::any_of(task_groups().begin(), task_groups().end(), [&](const TaskGroup& all) {
          return std::find(all.tasks.begin(), all.tasks.end(), other) != all.tasks.end();
        });
        if (!in_group) list += (list.empty() ? "" : ", ") + other;
      }
      const std::string near = nearest_name(name, known);
      fail("[eval] unknown task `", name, "`", near.empty() ? "" : ", did you mean `" + near + "`?",
           near.empty() ? "; known: " + list : "");
    }
    for (const std::string& task : group->tasks) add(selection.tasks, find(tasks(), task));
    for (const TaskGroup& other : task_groups()) {
      const bool inside = std::all_of(other.tasks.begin(), other.tasks.end(), [&](const std::string& task) {
        return std::find(group->tasks.begin(), group->tasks.end(), task) != group->tasks.end();
      });
      if (inside) add(selection.groups, &other);
    }
  }
  return selection;
}

std::vector<Document> load_documents(const Task& task, const std::string& split, const std::string& data) {
  const std::string path = document_file(task, split, data);
  std::vector<Document> documents;
  for (const Record& record : task.load(path)) {
    Document document = task.read(record);
    document.record = record.fields();
    documents.push_back(std::move(document));
  }
  MOH_CHECK(!documents.empty(), "[eval] ", task.name, ": ", path, " holds no record");
  return documents;
}

}  // namespace moh::eval
