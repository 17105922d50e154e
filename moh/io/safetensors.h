// The safetensors format: 8 bytes of little-endian header length, a JSON header, then the tensors' bytes.
// Torch-free. Every rule of the format is checked (header at most 100 MB, no duplicate keys, no holes, no overlaps,
// sizes that cannot overflow); a damaged file is one Error "[safetensors] FILE: what is wrong".
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace moh::io {

// Format names: F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL F8_E4M3 F8_E5M2.
// Returns 0 for an unknown name.
int dtype_bytes(const std::string& dtype);

struct TensorView {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // points into the mapping, valid while the file object lives
};

class SafetensorsFile {
 public:
  // Maps the file read-only.
  explicit SafetensorsFile(const std::string& path);
  // Reads from memory that the caller keeps alive (tests, fuzzing). `label` names it in errors.
  SafetensorsFile(std::span<const std::byte> memory, const std::string& label);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::string& path() const;
  const std::vector<TensorView>& tensors() const;         // in the order of their offsets
  const TensorView* find(const std::string& name) const;  // nullptr: not there
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Writes crash-safely (moh/io/files.h), tensors in the given order, header padded to 8 bytes.
// `format: pt` is added to metadata when absent, as transformers expects it.
void write_safetensors(const std::string& path, const std::vector<TensorView>& tensors,
                       std::map<std::string, std::string> metadata = {});

}  // namespace moh::io
