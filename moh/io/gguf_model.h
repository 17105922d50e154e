// A GGUF file as the Hugging Face folder that it was made of: what config.json would say, and the tensors by their
// names there, dequantised, with what llama.cpp changed in them undone; matrices also in the blocks that they lie in.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moh/io/checkpoint.h"
#include "moh/io/gguf.h"

namespace moh::io {

// A matrix as the file has it: [rows, bytes of a row], of the blocks that `type` names (moh/io/gguf_blocks.h).
struct StoredBlocks {
  std::string name, type;
  at::Tensor bytes;
};

class GgufModel {
 public:
  // `path`: the file, or the first of its parts (moh/io/gguf.h: gguf_parts).
  explicit GgufModel(const std::string& path);

  // The metadata, which a model in parts has in the first of them.
  const GgufFile& file() const { return *parts_.front(); }
  // config.json. Error: an architecture that is not known, metadata that is missing or that no config.json can say.
  Json config() const;
  // All tensors, of type `dtype`, or without one of the type that config() names: that of the matrices where all have
  // 16 bits, else fp32. What has that type in the file already stays in its map; the rest is made tensor by tensor.
  NamedTensors tensors(std::optional<at::ScalarType> dtype) const;
  // The matrices in blocks of these types, by their names in transformers; rows in the order in which tensors() has
  // them. Mapped.
  std::vector<StoredBlocks> blocks(const std::vector<std::string>& types) const;

 private:
  const GgufTensor* find(const std::string& name) const;
  at::ScalarType weights_type() const;

  std::vector<std::shared_ptr<GgufFile>> parts_;
};

}  // namespace moh::io
