#include "moh/data/image_folder.h"

#include <algorithm>
#include <filesystem>

#include "moh/base/error.h"

namespace moh::data {
namespace {

namespace fs = std::filesystem;

bool is_picture(const fs::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
  return ending == ".jpg" || ending == ".jpeg" || ending == ".png";
}

}  // namespace

ImageFolder ImageFolder::open(const std::string& root) {
  const std::string prefix = "[image folder] " + root;
  try {
    MOH_CHECK(fs::is_directory(root), prefix, " is not a folder; expected one with a subfolder of pictures per class");
    ImageFolder folder;
    folder.root = root;
    for (const auto& entry : fs::directory_iterator(root)) {
      if (entry.is_directory()) folder.classes.push_back(entry.path().filename().string());
    }
    std::sort(folder.classes.begin(), folder.classes.end());
    MOH_CHECK(!folder.classes.empty(), prefix, " has no subfolders; expected one with pictures per class");
    for (std::size_t label = 0; label < folder.classes.size(); ++label) {
      const fs::path of_class = fs::path(root) / folder.classes[label];
      std::vector<std::string> paths;
      for (const auto& entry :
           fs::recursive_directory_iterator(of_class, fs::directory_options::follow_directory_symlink)) {
        if (!entry.is_regular_file()) continue;
        if (is_picture(entry.path())) {
          paths.push_back(entry.path().string());
        } else {
          ++folder.other_files;
        }
      }
      MOH_CHECK(!paths.empty(), prefix, ": class folder `", folder.classes[label],
                "` has no *.jpg, *.jpeg or *.png; add some or remove the folder");
      std::sort(paths.begin(), paths.end());
      for (std::string& path : paths) folder.items.push_back({std::move(path), static_cast<std::int64_t>(label)});
    }
    return folder;
  } catch (const fs::filesystem_error& error) {
    fail(prefix, ": ", error.code().message(), " (", error.path1().string(), ")");
  }
}

}  // namespace moh::data
