// Checkpoints of torch.save (.pth, .pt): a zip archive with one pickle (moh/io/pickle.h) and one entry per storage.
// Torch-free. Errors: "[torch file] FILE: what is wrong, what to do".
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moh/io/pickle.h"

namespace moh::io {

class TorchFile {
 public:
  // Maps the file read-only.
  explicit TorchFile(const std::string& path);
  // Reads from memory that the caller keeps alive (tests, fuzzing). `label` names it in errors.
  TorchFile(std::span<const std::byte> memory, const std::string& label);
  ~TorchFile();
  TorchFile(TorchFile&&) noexcept;
  TorchFile& operator=(TorchFile&&) noexcept;

  const std::string& path() const;
  const PickleValue& root() const;

  struct Named {
    std::string name;
    const PickledTensor* tensor;
  };
  // The tensors of a dictionary: those under the first of `keys` that the root has, or, when it has none of them and
  // holds tensors itself, its own. "" stands for the root. What wrappers put into names is taken out (wrapper_names.h).
  // Errors: no such dictionary, a value that is no tensor.
  std::vector<Named> tensors(const std::vector<std::string>& keys) const;
  // The key that tensors() takes; nullopt: none of them is there.
  std::optional<std::string> first_key(const std::vector<std::string>& keys) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// True when a file's content begins as torch.save's files do, the old format included.
bool is_torch_file(const std::string& path);

}  // namespace moh::io
