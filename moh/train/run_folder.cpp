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

}  // namespace

RunFolder::RunFolder(std::string path) : path_(std::move(path)) { make_folder(path_); }

void RunFolder::remove_leftovers() const {
  io::remove_stale_temporaries(path_);
  remove_unfinished(checkpoints_folder(path_));
}

std::string RunFolder::last_checkpoint() const {
  const std::string last = newest_checkpoint(path_);
  return last.empty() ? "none" : last;
}

void RunFolder::save_checkpoint(std::int64_t step, std::int64_t keep,
                                const std::function<void(const std::string&)>& write) const {
  const std::string parent = checkpoints_folder(path_), name = kStepPrefix + std::to_string(step);
  if (fs::exists(parent + "/" + name)) return;  // saved just now, then interrupted
  make_folder(parent);
  remove_unfinished(parent);
  const std::string unfinished = parent + "/." + name + ".unfinished";
  try {
    make_folder(unfinished);
    write(unfinished);
    io::fsync_folder(unfinished);
    fs::rename(unfinished, parent + "/" + name);
    io::fsync_folder(parent);
  } catch (const std::exception& error) {
    remove_unfinished(parent);  // a full disk gets its space back
    fail("[train] the checkpoint of step ", step, " could not be saved: ", error.what(), "; the last one is ",
         last_checkpoint(), ", make room and go on with --resume");
  }
  const auto all = checkpoints_of(path_);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < all.size(); ++i) {
    const std::string removed = parent + "/." + fs::path(all[i].second).filename().string() + ".removed";
    fs::rename(all[i].second, removed);
    fs::remove_all(removed);
  }
}

std::string newest_checkpoint(const std::string& folder) {
  const auto found = checkpoints_of(folder);
  return found.empty() ? "" : found.back().second;
}

}  // namespace moh::train
