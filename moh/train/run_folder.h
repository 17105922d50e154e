// The folder of a training: checkpoints/step-N/, each complete or absent, of which the last few are kept.
//
// A checkpoint is written under another name, synced and then renamed; it loses its name before anything of it is
// removed. So whatever is called step-N is whole, even after kill -9 or a full disk.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace moh::train {

constexpr const char* kAveragedFile = "ema.safetensors";  // beside each model.safetensors of a run with an average

class RunFolder {
 public:
  // Makes the folder.
  explicit RunFolder(std::string path);

  const std::string& path() const { return path_; }

  // Removes what runs that were ended half-way left.
  void remove_leftovers() const;
  // Makes checkpoint `step` of what `write` puts into the folder it is given, then removes all but the newest `keep`.
  // Nothing is done if it is there. Error: what `write` threw, and which checkpoint is the last.
  void save_checkpoint(std::int64_t step, std::int64_t keep,
                       const std::function<void(const std::string&)>& write) const;
  // The newest checkpoint for a message: its folder, or "none".
  std::string last_checkpoint() const;

 private:
  std::string path_;
};

// The newest complete checkpoint of a training folder, or "".
std::string newest_checkpoint(const std::string& folder);

}  // namespace moh::train
