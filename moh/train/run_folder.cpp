#include "moh/train/run_folder.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "moh/base/error.h"
#include "moh/io/files.h"

namespace moh::train {
namespace {

namespace fs = std::filesystem;
constexpr const char* kStepPrefix = "step-";
constexpr const char* kStateFile = "trainer.json";

void make_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  MOH_CHECK(!error, "[train] cannot make folder ", folder, ": ", error.message());
}

std::string checkpoints_folder(const std::string& run) { return run + "/checkpoints"; }

// step-N -> N; -1 for any other name.
std::int64_t step_of(const std::string& name) {
  if (!name.starts_with(kStepPrefix) || name.size() == 5 || name.size() > 20) return -1;
  const std::string digits = name.substr(5);
  if (digits.find_first_not_of("0123456789") != std::string::npos) return -1;
  return std::stoll(digits);
}

// By step, the oldest first.
std::vector<std::pair<std::int64_t, std::string>> checkpoints_of(const std::string& run) {
  std::vector<std::pair<std::int64_t, std::string>> found;
  if (!fs::is_directory(checkpoints_folder(run))) return found;
  for (const auto& entry : fs::directory_iterator(checkpoints_folder(run))) {
    const std::int64_t step = step_of(entry.path().filename().string());
    if (step >= 0) found.emplace_back(step, entry.path().string());
  }
  std::sort(found.begin(), found.end());
  return found;
}

// Unfinished and half-removed checkpoints have names that begin with a dot.
void remove_unfinished(const std::string& parent) {
  if (!fs::is_directory(parent)) return;
  std::vector<fs::path> left;
  for (const auto& entry : fs::directory_iterator(parent)) {
    if (entry.path().filename().string().starts_with(std::string(".") + kStepPrefix)) left.push_back(entry.path());
  }
  std::error_code ignored;  // tried again before the next checkpoint
  for (const auto& path : left) fs::remove_all(path, ignored);
}

// It loses its name first.
void remove_checkpoint(const std::string& checkpoint) {
  if (!fs::exists(checkpoint)) return;
  const fs::path path = checkpoint;
  const fs::path removed = path.parent_path() / ("." + path.filename().string() + ".removed");
  fs::rename(path, removed);
  fs::remove_all(removed);
}

// What a checkpoint lacks, "" if it is whole. Those of before trainer.json named the files must have that and the
// optimizer's state.
std::string missing_from(const std::string& checkpoint) {
  const std::string file = checkpoint + "/" + kStateFile;
  if (!fs::exists(file)) return std::string(kStateFile) + " is missing";
  Json files = Json::object();
  try {
    const Json state = parse_json(io::read_file(file, 1 << 20), file);
    if (state.is_object() && state.contains("files")) files = state["files"];
  } catch (const Error& error) {
    return error.what();
  }
  if (!files.is_object()) return std::string(kStateFile) + " is damaged";
  for (const auto& item : files.items()) {
    std::error_code error;
    const auto size = fs::file_size(checkpoint + "/" + item.key(), error);
    if (error) return item.key() + " is missing";
    if (item.value() != size) return item.key() + " has " + std::to_string(size) + " bytes, not " + item.value().dump();
  }
  return "";
}

}  // namespace

RunFolder::RunFolder(std::string path, const distributed::Group& group) : path_(std::move(path)), group_(group) {
  if (group_.rank() == 0) make_folder(path_);
  group_.barrier("training folder");
  MOH_CHECK(fs::is_directory(path_), "[train] process ", group_.rank(), " does not see ", path_,
            "; --out must be a folder that all processes share");
}

void RunFolder::remove_leftovers() const {
  if (group_.rank() != 0) return;
  io::remove_stale_temporaries(path_);
  remove_unfinished(checkpoints_folder(path_));
}

std::string RunFolder::last_checkpoint() const {
  const std::string last = newest_checkpoint(path_);
  return last.empty() ? "none" : last;
}

void RunFolder::save_checkpoint(std::int64_t step, std::int64_t keep, Json state,
                                const std::function<void(const std::string&)>& write) {
  if (saved_ == step) return;  // saved just now, then interrupted
  const bool first = group_.rank() == 0;
  const std::string parent = checkpoints_folder(path_), name = kStepPrefix + std::to_string(step);
  const std::string unfinished = parent + "/." + name + ".unfinished";
  std::string problem;
  const auto attempt = [&](const auto& action) {
    try {
      action();
    } catch (const std::exception& error) {
      problem = error.what();
    }
    // Whoever failed: nobody goes on.
    std::vector<double> failed(static_cast<std::size_t>(group_.size()), 0);
    failed[static_cast<std::size_t>(group_.rank())] = problem.empty() ? 0 : 1;
    group_.sum(failed, "checkpoint");
    for (std::size_t i = 0; i < failed.size(); ++i) {
      if (failed[i] == 0) continue;
      if (problem.empty()) problem = "process " + std::to_string(i) + " could not write its part";
      if (first) remove_unfinished(parent);  // a full disk gets its space back
      fail("[train] the checkpoint of step ", step, " could not be saved: ", problem, "; the last one is ",
           last_checkpoint(), ", make room and go on with --resume");
    }
  };
  attempt([&] {
    if (!first) return;
    make_folder(parent);
    remove_unfinished(parent);
    make_folder(unfinished);
  });
  attempt([&] { write(unfinished); });
  attempt([&] {
    if (!first) return;
    Json files = Json::object();
    for (const auto& entry : fs::directory_iterator(unfinished)) {
      if (entry.is_regular_file()) files[entry.path().filename().string()] = entry.file_size();
    }
    state["files"] = files;
    io::write_file(unfinished + "/" + kStateFile, state.dump(2) + "\n");
    io::fsync_folder(unfinished);
    remove_checkpoint(parent + "/" + name);  // one that was passed over, since it is not whole
    fs::rename(unfinished, parent + "/" + name);
    io::fsync_folder(parent);
  });
  saved_ = step;
  if (!first) return;
  const auto all = checkpoints_of(path_);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < all.size(); ++i) {
    remove_checkpoint(all[i].second);
  }
}

std::string newest_checkpoint(const std::string& folder, std::vector<std::string>* incomplete) {
  auto found = checkpoints_of(folder);
  for (; !found.empty(); found.pop_back()) {
    const std::string& newest = found.back().second;
    const std::string missing = missing_from(newest);
    if (missing.empty()) return newest;
    if (incomplete != nullptr) incomplete->push_back(newest + ": " + missing);
  }
  return "";
}

}  // namespace moh::train
