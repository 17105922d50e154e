#include "moh/data/image_folder.h"

#include <filesystem>
#include <utility>

#include "moh/base/error.h"
#include "moh/io/folder_walk.h"

namespace moh::data {
namespace fs = std::filesystem;

ImageFolder ImageFolder::open(const std::string& root) {
  const std::string prefix = "[image folder] " + root;
  MOH_CHECK(fs::is_directory(root), prefix, " is not a folder; expected one with a subfolder of pictures per class");
  ImageFolder folder;
  folder.root = root;
  folder.classes = io::folders_in(root);
  MOH_CHECK(!folder.classes.empty(), prefix, " has no subfolders; expected one with pictures per class");
  for (std::size_t label = 0; label < folder.classes.size(); ++label) {
    io::FolderFiles found = io::files_in(root + "/" + folder.classes[label], /*deep=*/true, io::is_picture_name);
    MOH_CHECK(!found.paths.empty(), prefix, ": class folder `", folder.classes[label],
              "` has no *.jpg, *.jpeg or *.png; add some or remove the folder");
    folder.other_files += found.others;
    for (std::string& path : found.paths) folder.items.push_back({std::move(path), static_cast<std::int64_t>(label)});
  }
  return folder;
}

}  // namespace moh::data
