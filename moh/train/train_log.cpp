#include "moh/train/train_log.h"

#include <algorithm>
#include <filesystem>

#include "moh/base/error.h"
#include "moh/io/files.h"

namespace moh::train {
namespace {

void drop_later_lines(const std::string& path, std::int64_t step) {
  if (!std::filesystem::exists(path)) return;
  std::ifstream old(path);
  std::string line, kept;
  while (std::getline(old, line)) {
    const Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (entry.is_object() && entry.value("step", std::int64_t{0}) <= step) kept += line + "\n";
  }
  old.close();
  io::write_file(path, kept);
}

}  // namespace

TrainLog::TrainLog(const std::string& folder, Listener listener, bool speaks)
    : path_(folder + "/log.jsonl"), listener_(std::move(listener)) {
  if (speaks) events_.emplace(folder);
}

void TrainLog::open(std::int64_t step) {
  if (!events_) return;
  if (step > 0) drop_later_lines(path_, step);
  file_.open(path_, step > 0 ? std::ios::app : std::ios::trunc);
  MOH_CHECK(file_.good(), "[train] cannot write ", path_);
}

void TrainLog::write(const Json& line) {
  if (!events_) return;
  file_ << line.dump() << "\n" << std::flush;
  MOH_CHECK(file_.good(), "[train] cannot write ", path_, "; is the disk full?");
  const auto step = line["step"].get<std::int64_t>();
  for (const auto& item : line.items()) {
    if (item.key() != "step" && item.value().is_number()) events_->scalar(item.key(), item.value().get<double>(), step);
  }
  events_->flush();
  if (listener_.on_log) listener_.on_log(line);
}

void TrainLog::stepped(const Pace& pace) const {
  if (events_ && listener_.on_step) listener_.on_step(pace);
}

double Rate::add(std::int64_t items) {
  items_ += items;
  const double seconds = std::chrono::duration<double>(Clock::now() - since_).count();
  return static_cast<double>(items_) / std::max(seconds, 1e-9);
}

}  // namespace moh::train
