// Continuous relative position bias of the vision transformers (spec, section 2): a small MLP turns the distance
// between a query and a pooled key into one number per head.
//
// Coordinates are (query - key) / (pretrain - 1) * 8 per axis, then sign(x) * log2(|x| + 1) / 3; keys lie at the means
// of the query positions that adaptive average pooling gathers for them. Each distance that occurs stands once in
// `table`.
#pragma once

#include <ATen/core/Tensor.h>

#include "moh/layers/linear.h"

namespace moh::layers {

struct MapSize {
  std::int64_t height = 0, width = 0;
  std::int64_t area() const { return height * width; }
  bool operator==(const MapSize&) const = default;
};

struct RelativePositions {
  at::Tensor table;  // [rows, 2] fp32, sorted
  at::Tensor index;  // [N * M] int64: row of query n and key m
};

// Positions of a query map and of the key map pooled from it (the same size: no pooling), on the CPU.
RelativePositions relative_positions(MapSize query, MapSize key, MapSize pretrain);

struct PositionMlp {
  Linear fc1, fc2;  // [hidden, 2], [H, hidden]
};

// fc2(relu(fc1(table)))[index] as [H, N, M]; differentiable in the weights.
at::Tensor relative_position_bias(const RelativePositions& positions, const PositionMlp& mlp, std::int64_t queries,
                                  std::int64_t keys);

}  // namespace moh::layers
