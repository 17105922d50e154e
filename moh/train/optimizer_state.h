// The optimizer's state in a checkpoint. One process saves optimizer.safetensors with whole tensors; of several, each
// saves optimizer-00002-of-00004.safetensors with the stretches of the flattened tensors that it keeps: beside
// `first.NAME` [n] stands `start.NAME`, the place of its first number. Read here in any other division.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "moh/io/checkpoint.h"

namespace moh::train {

std::string optimizer_file(int part, int parts);

// Of the default generator, from which drop path draws: saved as `rng` beside the optimizer's state.
at::Tensor generator_state();
void set_generator_state(const at::Tensor& state);

class OptimizerState {
 public:
  // Error: a part is missing.
  explicit OptimizerState(const std::string& folder);

  bool has(const std::string& name) const { return pieces_.contains(name); }
  // Numbers begin .. begin + target.numel() - 1 of the flattened tensor `kind.name`, of `size` numbers. Error: they are
  // not all there.
  void read(const std::string& kind, const std::string& name, std::int64_t size, std::int64_t begin,
            const at::Tensor& target) const;
  // A tensor that is not divided: `step.NAME`, `rng`.
  at::Tensor whole(const std::string& name) const;

 private:
  struct Piece {
    at::Tensor numbers;  // as saved, of any shape
    std::int64_t start;
  };
  std::map<std::string, std::vector<Piece>> pieces_;
};

}  // namespace moh::train
