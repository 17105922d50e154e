// The folder of a training: checkpoints/step-N/, each complete or absent, of which the last few are kept.
//
// A checkpoint is written under another name, by all processes of a group, each its part, synced and then renamed by
// process 0 when all have said that they are done; it loses its name before anything of it is removed. So whatever is
// called step-N is whole, even after kill -9 or a full disk. Its trainer.json names every file and its size, so that
// what went wrong later (a file lost in copying) is seen too.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moh/base/fields.h"
#include "moh/distributed/group.h"

namespace moh::train {

constexpr const char* kAveragedFile = "ema.safetensors";  // beside each model.safetensors of a run with an average

class RunFolder {
 public:
  // Makes the folder. All processes of the group must see it under the same path.
  RunFolder(std::string path, const distributed::Group& group);

  const std::string& path() const { return path_; }

  // Removes what runs that were ended half-way left.
  void remove_leftovers() const;
  // Makes checkpoint `step` of what `write` puts into the folder it is given and of `state` (trainer.json), then
  // removes all but the newest `keep`. Nothing is done if it is there. Error: what `write` threw in any process, and
  // which checkpoint is the last.
  void save_checkpoint(std::int64_t step, std::int64_t keep, Json state,
                       const std::function<void(const std::string&)>& write);
  // A run that goes on from the checkpoint of `step` has it already.
  void has_checkpoint(std::int64_t step) { saved_ = step; }
  // The newest checkpoint for a message: its folder, or "none".
  std::string last_checkpoint() const;

 private:
  std::string path_;
  const distributed::Group& group_;
  std::int64_t saved_ = -1;
};

// The newest complete checkpoint of a training folder, or "". `incomplete` hears of newer ones that are not whole, with
// what is missing.
std::string newest_checkpoint(const std::string& folder, std::vector<std::string>* incomplete = nullptr);

}  // namespace moh::train
