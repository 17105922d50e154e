#include "moh/io/folder_walk.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <set>
#include <utility>

#include "moh/base/error.h"

namespace moh::io {
namespace {

namespace fs = std::filesystem;

bool is_passed_over(const std::string& name) { return name.starts_with('.') || name == "__MACOSX"; }

// Names of files and of folders, links followed; the number of what is neither.
struct Listing {
  std::vector<std::string> files, folders;
  std::int64_t others = 0;
};

Listing list(const std::string& folder) {
  Listing listing;
  try {
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (is_passed_over(name)) continue;
      std::error_code error;
      const fs::file_status status = fs::status(entry.path(), error);
      if (fs::is_regular_file(status)) {
        listing.files.push_back(name);
      } else if (fs::is_directory(status)) {
        listing.folders.push_back(name);
      } else {
        ++listing.others;
      }
    }
  } catch (const fs::filesystem_error& error) {
    fail("[files] ", folder, ": cannot be read: ", error.code().message());
  }
  std::sort(listing.files.begin(), listing.files.end());
  std::sort(listing.folders.begin(), listing.folders.end());
  return listing;
}

class Walk {
 public:
  Walk(bool deep, const std::function<bool(const std::string&)>& wanted) : deep_(deep), wanted_(wanted) {}

  void visit(const std::string& folder) {
    struct stat info;
    if (::stat(folder.c_str(), &info) == 0 && !visited_.insert({info.st_dev, info.st_ino}).second) return;
    Listing listing = list(folder);
    found_.others += listing.others;
    for (const std::string& name : listing.files) {
      if (wanted_(name)) {
        found_.paths.push_back(folder + "/" + name);
      } else {
        ++found_.others;
      }
    }
    if (!deep_) return;
    for (const std::string& name : listing.folders) visit(folder + "/" + name);
  }
  FolderFiles found() { return std::move(found_); }

 private:
  bool deep_;
  const std::function<bool(const std::string&)>& wanted_;
  std::set<std::pair<std::uint64_t, std::uint64_t>> visited_;
  FolderFiles found_;
};

}  // namespace

FolderFiles files_in(const std::string& folder, bool deep, const std::function<bool(const std::string& name)>& wanted) {
  Walk walk(deep, wanted);
  walk.visit(folder);
  FolderFiles found = walk.found();
  std::sort(found.paths.begin(), found.paths.end());
  return found;
}

std::vector<std::string> folders_in(const std::string& folder) { return list(folder).folders; }

bool is_picture_name(const std::string& name) {
  std::string ending = fs::path(name).extension().string();
  for (char& c : ending) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return ending == ".jpg" || ending == ".jpeg" || ending == ".png";
}

}  // namespace moh::io
