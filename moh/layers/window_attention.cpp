#include "moh/layers/window_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "moh/base/error.h"

namespace moh::layers {
namespace {

using at::Tensor;
using std::optional;

// A block reaches block + window - 1 keys: long blocks waste keys, short ones calls.
constexpr std::int64_t kLeastBlock = 64, kMostBlock = 1024;

}  // namespace

Tensor window_attention(HeadAttention attention, const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& gates, const optional<Tensor>& bias, std::int64_t window) {
  MOH_CHECK(window > 0, "[window_attention] window must be positive, got ", window);
  const std::int64_t tokens = query.size(1), keys = key.size(1), offset = keys - tokens;
  MOH_CHECK(offset >= 0, "[window_attention] ", tokens, " queries need as many keys at least, got ", keys);
  MOH_CHECK(!bias || (bias->dim() == 4 && bias->size(2) == 1 && bias->size(3) == keys),
            "[window_attention] bias must be [B, H, 1, S] over ", keys, " keys, got ", bias->sizes());
  if (keys <= window) return attention(query, key, value, gates, bias, /*causal=*/true, std::nullopt);

  const std::int64_t block = std::clamp(window, kLeastBlock, kMostBlock);
  std::vector<Tensor> parts;
  for (std::int64_t begin = 0; begin < tokens; begin += block) {
    const std::int64_t count = std::min(block, tokens - begin), end = offset + begin + count;  // of its last key
    const std::int64_t first = std::max<std::int64_t>(0, offset + begin - window + 1);
    optional<Tensor> part_bias;
    if (bias) part_bias = bias->narrow(3, first, end - first);
    if (end - window > first) {  // the block's last token does not see its first key
      const auto longs = query.options().dtype(at::kLong).requires_grad(false);
      const Tensor oldest = at::arange(end - count - window, end - window, longs).unsqueeze(1);  // not seen, nor before
      const Tensor outside = at::arange(first, end, longs).le(oldest);
      const Tensor mask = at::zeros(outside.sizes(), query.options().requires_grad(false))
                              .masked_fill(outside, -std::numeric_limits<double>::infinity())
                              .unsqueeze(0)
                              .unsqueeze(0);
      part_bias = part_bias ? *part_bias + mask : mask;
    }
    parts.push_back(attention(query.narrow(1, begin, count), key.narrow(1, first, end - first),
                              value.narrow(1, first, end - first), gates.narrow(1, begin, count), part_bias,
                              /*causal=*/true, std::nullopt));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 1);
}

}  // namespace moh::layers
