// Where a training stands, apart from tensors: trainer.json of a checkpoint.
#pragma once

#include <cstdint>
#include <string>

#include "moh/base/fields.h"
#include "moh/train/loss_scale.h"

namespace moh::train {

struct TrainState {
  std::int64_t step = 0, items = 0;
  std::int64_t examples = 0;  // of the training data, taken in all steps so far, whatever their batches
  LossScale scale;
};

Json state_json(const TrainState& state);
// Reads what state_json gave out of `file` into `state`, whose scale says whether it is dynamic. `batch`: of the run,
// for files that name neither examples nor their own batch. Error: the file is damaged.
void load_state(const std::string& file, std::int64_t batch, TrainState& state);

}  // namespace moh::train
