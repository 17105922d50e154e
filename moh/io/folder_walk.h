// The files of a folder of data, the same ones for every command. Torch-free.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace moh::io {

struct FolderFiles {
  std::vector<std::string> paths;  // sorted
  std::int64_t others = 0;         // files that are not wanted, and links to nothing
};

// Files whose names `wanted` takes, in `folder` and, if `deep`, in all folders inside. Links are followed, but no
// folder is visited twice; what begins with a dot is passed over, as are the folders __MACOSX that unpacked archives
// leave. Error: a folder that cannot be read.
FolderFiles files_in(const std::string& folder, bool deep, const std::function<bool(const std::string& name)>& wanted);

// Names of the folders in `folder` by the same rules, sorted.
std::vector<std::string> folders_in(const std::string& folder);

// .jpg, .jpeg, .png in any case.
bool is_picture_name(const std::string& name);

}  // namespace moh::io
