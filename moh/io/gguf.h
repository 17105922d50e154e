// The GGUF format of llama.cpp, versions 2 and 3: a header, key-value metadata, the tensors' names, types, shapes and
// offsets, then their bytes. Torch-free.
//
// The file is mapped, not read, and every rule is checked: counts and lengths against the file's size, no key or name
// twice, offsets aligned, sizes that cannot overflow, tensors that follow one another without holes or overlaps. A
// damaged file is one Error "[gguf] FILE: what is wrong".
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moh/io/gguf_blocks.h"

namespace moh::io {

struct GgufTensor {
  std::string name;
  const BlockType* type = nullptr;
  std::vector<std::int64_t> shape;   // as torch has it: the file's numbers the other way round
  std::span<const std::byte> bytes;  // points into the mapping, valid while the file object lives
};

class GgufFile {
 public:
  // Maps the file read-only.
  explicit GgufFile(const std::string& path);
  // Reads from memory that the caller keeps alive (tests, fuzzing). `label` names it in errors.
  GgufFile(std::span<const std::byte> memory, const std::string& label);
  ~GgufFile();
  GgufFile(GgufFile&&) noexcept;
  GgufFile& operator=(GgufFile&&) noexcept;

  const std::string& path() const;
  const std::vector<GgufTensor>& tensors() const;         // in the order of their offsets
  const GgufTensor* find(const std::string& name) const;  // nullptr: not there

  // Metadata. Nothing, or an empty list, where the key is absent; Error where its value is of another type (integers of
  // every width and sign are one type here, and so are both floats).
  bool has(const std::string& key) const;
  std::vector<std::string> keys() const;
  std::optional<std::string_view> text(const std::string& key) const;
  std::optional<std::int64_t> integer(const std::string& key) const;
  std::optional<double> number(const std::string& key) const;  // an integer too
  std::optional<bool> flag(const std::string& key) const;
  std::vector<std::string_view> texts(const std::string& key) const;
  std::vector<std::int64_t> integers(const std::string& key) const;
  std::vector<double> numbers(const std::string& key) const;
  bool is_list(const std::string& key) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// True when a file's content begins as GGUF does.
bool is_gguf_file(const std::string& path);

// The GGUF file that `path` means as a model: itself; or, of a folder without weights in another format, the only one
// in it (of a split model the first part). Nothing: `path` is another kind of model. Error: the folder holds several.
std::optional<std::string> find_gguf(const std::string& path);

// All files of the model that begins with `first`: itself, or the parts that its name numbers (-00001-of-00003.gguf).
std::vector<std::string> gguf_parts(const std::string& first);

}  // namespace moh::io
