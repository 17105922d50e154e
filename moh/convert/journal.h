// What a conversion has done so far, in a folder beside the model that it makes: stopped, it goes on from there.
#pragma once

#include <string>

#include "moh/io/checkpoint.h"

namespace moh::convert {

class Journal {
 public:
  // Opens or begins the folder; "": nothing is kept. `settings` describe the conversion. Error: the folder is of
  // another one.
  Journal(std::string folder, const Json& settings);

  bool has(const std::string& entry) const;
  io::NamedTensors load(const std::string& entry) const;
  void save(const std::string& entry, const io::NamedTensors& tensors) const;  // whole or not at all
  void remove() const;                                                         // the conversion is complete

 private:
  std::string file(const std::string& entry) const { return folder_ + "/" + entry + ".safetensors"; }
  std::string folder_;
};

}  // namespace moh::convert
