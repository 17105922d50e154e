// Which heads every token uses, as a value: made once by the router of a layer and taken by its projections, its
// attention and its output, forward and backward.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "moh/kernels/selection.h"

namespace moh::ops {

struct Selection {
  at::Tensor gates;  // [..., H] what multiplies each head's output; zero: not selected. Differentiable
  // Tokens are counted through all leading dimensions. Those that use head h, ascending: rows[first[h]] ..
  // rows[first[h + 1] - 1].
  at::Tensor rows;   // [gates.numel()] int32, zeros behind the lists
  at::Tensor first;  // [H + 1] int64

  // The same lists for other gates of the same pattern.
  Selection with_gates(at::Tensor other) const { return {std::move(other), rows, first}; }
};

// No gradient flows through the lists. On a GPU nothing waits for the device.
Selection select_heads(const at::Tensor& gates);

// Share of gates that are not zero over all of them, 1 for none. One number comes from the device, whatever their
// count.
double active_share(const std::vector<Selection>& selections);

// The lists of an operator's arguments, made here where the caller gave none, as kernels take them: on the CPU.
struct KernelSelection {
  at::Tensor gates, rows, first;  // what `view` points to
  kernels::Selection view;
  KernelSelection(const at::Tensor& gates, const std::optional<at::Tensor>& rows,
                  const std::optional<at::Tensor>& first);
};

}  // namespace moh::ops
