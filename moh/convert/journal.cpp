#include "moh/convert/journal.h"

#include <filesystem>

#include "moh/base/error.h"

namespace moh::convert {

namespace fs = std::filesystem;

Journal::Journal(std::string folder, const Json& settings) : folder_(std::move(folder)) {
  if (folder_.empty()) return;
  if (fs::exists(folder_ + "/config.json")) {
    MOH_CHECK(io::load_config(folder_) == settings, "[convert] ", folder_,
              " holds the beginning of a conversion of another model or with other options; remove it, or choose "
              "another output folder");
    return;
  }
  std::error_code error;
  fs::create_directories(folder_, error);
  MOH_CHECK(!error, "[convert] cannot make folder ", folder_, ": ", error.message());
  io::save_json(folder_ + "/config.json", settings);
}

bool Journal::has(const std::string& entry) const { return !folder_.empty() && fs::exists(file(entry)); }

io::NamedTensors Journal::load(const std::string& entry) const {
  io::NamedTensors tensors = io::load_tensors(file(entry));
  for (auto& [name, tensor] : tensors) tensor = tensor.clone();  // the entry may be written again
  return tensors;
}

void Journal::save(const std::string& entry, const io::NamedTensors& tensors) const {
  if (folder_.empty()) return;
  io::save_tensors(file(entry), tensors);
}

void Journal::remove() const {
  std::error_code ignored;
  if (!folder_.empty()) fs::remove_all(folder_, ignored);
}

}  // namespace moh::convert
