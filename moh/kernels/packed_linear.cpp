#include "moh/kernels/packed_linear.h"

#include <algorithm>

#include "moh/kernels/each_item.h"

namespace moh::kernels {
namespace {

template <class T>
void pack_panel_of(const T* weight, std::int64_t panel, std::int64_t outputs, std::int64_t inputs,
                   std::int64_t output_stride, std::int64_t input_stride, T* packed) {
  const std::int64_t first = panel * kPackedColumns, count = std::min(kPackedColumns, outputs - first);
  T* const to = packed + first * inputs;
  for (std::int64_t i = 0; i < inputs; ++i) {
    for (std::int64_t c = 0; c < kPackedColumns; ++c) {
      to[i * kPackedColumns + c] = c < count ? weight[(first + c) * output_stride + i * input_stride] : T{};
    }
  }
}

}  // namespace

void pack_weight(const void* weight, std::int64_t bytes, std::int64_t outputs, std::int64_t inputs,
                 std::int64_t output_stride, std::int64_t input_stride, void* packed, const Parallel& parallel) {
  const std::int64_t panels = (outputs + kPackedColumns - 1) / kPackedColumns;
  split_items(parallel, panels, [&](std::int64_t panel) {
    const auto pack = [&]<class T>(const T* from, T* to) {
      pack_panel_of(from, panel, outputs, inputs, output_stride, input_stride, to);
    };
    if (bytes == 4) {
      pack(static_cast<const std::uint32_t*>(weight), static_cast<std::uint32_t*>(packed));
    } else {
      pack(static_cast<const std::uint16_t*>(weight), static_cast<std::uint16_t*>(packed));
    }
  });
}

}  // namespace moh::kernels
