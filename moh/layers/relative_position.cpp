#include "moh/layers/relative_position.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

namespace moh::layers {
namespace {

using at::Tensor;

// Distances along one axis: the values that occur, in order, and for each (query, key) which one it is.
struct Axis {
  Tensor values;  // [rows] fp32
  Tensor index;   // [queries, keys] int64
};

Axis axis(std::int64_t queries, std::int64_t keys, std::int64_t pretrain) {
  const Tensor at_query = at::arange(queries, at::TensorOptions(at::kFloat));
  const Tensor at_key = at::adaptive_avg_pool1d(at_query.unsqueeze(0), keys).squeeze(0);
  // A map of one row or column has no distances: the divisor does not matter.
  const Tensor distance =
      (at_query.unsqueeze(1) - at_key.unsqueeze(0)) / static_cast<double>(std::max<std::int64_t>(pretrain - 1, 1)) * 8;
  auto [values, index, counts] = at::_unique2(distance, /*sorted=*/true, /*return_inverse=*/true);
  return {values, index};
}

}  // namespace

RelativePositions relative_positions(MapSize query, MapSize key, MapSize pretrain) {
  const Axis vertical = axis(query.height, key.height, pretrain.height);
  const Axis horizontal = axis(query.width, key.width, pretrain.width);
  const std::int64_t rows = vertical.values.numel(), columns = horizontal.values.numel();
  const Tensor grid = at::stack({vertical.values.unsqueeze(1).expand({rows, columns}),
                                 horizontal.values.unsqueeze(0).expand({rows, columns})},
                                -1)
                          .reshape({-1, 2});
  RelativePositions positions;
  positions.table = at::sign(grid) * at::log2(grid.abs() + 1.0) / 3.0;
  // [query row, query column, key row, key column]
  positions.index = (vertical.index.reshape({query.height, 1, key.height, 1}) * columns +
                     horizontal.index.reshape({1, query.width, 1, key.width}))
                        .reshape({-1});
  return positions;
}

Tensor relative_position_bias(const RelativePositions& positions, const PositionMlp& mlp, std::int64_t queries,
                              std::int64_t keys) {
  const Tensor by_distance = mlp.fc2(at::relu(mlp.fc1(positions.table)));  // [rows, H]
  return by_distance.t().index_select(1, positions.index).reshape({-1, queries, keys});
}

}  // namespace moh::layers
