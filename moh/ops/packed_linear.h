// Linear maps by weights that were stored anew once, for models that serve: a row's result does not depend on the other
// rows of the call, and weights of heads that no row uses are not read (moh/kernels/packed_linear.h,
// quantized_linear.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "moh/kernels/packed_linear.h"
#include "moh/kernels/quantized_linear.h"
#include "moh/ops/selection.h"

namespace moh::ops {

// What a stored weight's numbers are: as they come, or of 8 or 4 bits in blocks of 32 with a scale of their own.
enum class WeightStorage : std::uint8_t { kSame, kInt8, kInt4 };

// A weight [out, in] that a file has in GGUF's blocks: bytes [out, bytes of a row].
struct BlockedWeight {
  at::Tensor bytes;
  kernels::WeightBlocks kind = kernels::WeightBlocks::kQ8_0;
};
constexpr bool stores(WeightStorage storage, kernels::WeightBlocks kind) {
  return storage == (kind == kernels::WeightBlocks::kQ8_0 ? WeightStorage::kInt8 : WeightStorage::kInt4);
}

class PackedWeight {
 public:
  // weight [out, in] in fp32, bf16 or fp16 on the CPU; bias [out].
  PackedWeight(const at::Tensor& weight, const std::optional<at::Tensor>& bias,
               WeightStorage storage = WeightStorage::kSame);
  // The file's own blocks, bit for bit.
  PackedWeight(const BlockedWeight& weight, std::int64_t inputs, const std::optional<at::Tensor>& bias);

  std::int64_t outputs() const { return outputs_; }
  std::int64_t inputs() const { return inputs_; }
  std::int64_t bytes() const { return packed_.numel() * packed_.element_size(); }

  // x [..., in] in fp32, bf16 or fp16 -> [..., out] in x's type. No gradients.
  at::Tensor apply(const at::Tensor& x) const;
  // x [..., in] -> [..., H, D], zero for the heads that are not selected.
  at::Tensor project(const at::Tensor& x, const Selection& selection) const;
  // heads [..., H, D], zero where they are not selected -> [..., out].
  at::Tensor combine(const at::Tensor& heads, const Selection& selection) const;

 private:
  at::Tensor run(const at::Tensor& x, const kernels::HeadSides& heads) const;
  at::Tensor matrix() const;  // [out, in] in fp32
  void store_blocks(const void* blocks);

  at::Tensor packed_, bias_;                     // bias: fp32, undefined if there is none
  std::optional<kernels::WeightBlocks> blocks_;  // nullopt: of packed_'s type
  std::int64_t outputs_, inputs_;
};

// While one of these lives on a thread, ops::linear multiplies row by row there, too: the small products of routers,
// whose weights are packed anew for each of them.
class RowwiseProducts {
 public:
  RowwiseProducts();
  ~RowwiseProducts();
  RowwiseProducts(const RowwiseProducts&) = delete;
  RowwiseProducts& operator=(const RowwiseProducts&) = delete;
  static bool wanted();

 private:
  bool before_;
};

}  // namespace moh::ops
