// A folder with one subfolder of pictures per class, as torchvision's ImageFolder reads it: classes are the subfolders
// in the order of their names (bytes compared), numbered from 0; a class's pictures are its *.jpg, *.jpeg and *.png at
// any depth, in the order of their paths. Torch-free.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moh::data {

struct ImageFolder {
  struct Item {
    std::string path;
    std::int64_t label = 0;
  };
  std::string root;
  std::vector<std::string> classes;
  std::vector<Item> items;       // class by class
  std::int64_t other_files = 0;  // with another ending: not pictures that are read

  // Errors: not a folder, no class folders, a class folder without pictures.
  static ImageFolder open(const std::string& root);
};

}  // namespace moh::data
