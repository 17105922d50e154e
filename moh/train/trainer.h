// The training loop: schedule, accumulation, clipping, AdamW, validation, checkpoints, resume to the bit.
//
// A training folder holds log.jsonl (one JSON object a step that is logged), TensorBoard events, checkpoints/step-N/
// (run_folder.h) and at the end the model itself; with an average of the weights, that too, as ema.safetensors beside
// each model.safetensors.
//
// Several processes train as one that has the whole batch would, within rounding: each takes its share of the examples,
// sums go over all of them. Process 0 keeps the log and the average; every one writes its part of a checkpoint.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "moh/distributed/group.h"
#include "moh/train/run_folder.h"
#include "moh/train/task.h"
#include "moh/train/train_config.h"
#include "moh/train/train_log.h"

namespace moh::train {

class Trainer {
 public:
  using Pace = train::Pace;

  // `group` must outlive this.
  Trainer(TrainConfig config, Task& task, std::string folder, Listener listener, const distributed::Group& group);
  Trainer(TrainConfig config, Task& task, std::string folder, Listener listener);  // alone
  ~Trainer();

  std::int64_t step() const;  // made so far

  // Goes on from `checkpoint` (a step-N folder); the model's weights are the task's duty.
  void resume(const std::string& checkpoint);
  // Trains to config.steps, saves and returns true; or, when `stop` becomes true in any process, saves a checkpoint and
  // returns false in all. A process alone stops within its step or validation: the step comes again when the run is
  // resumed, the validation is left out. Errors: a loss that is not finite (the last checkpoint stays).
  bool run(const std::atomic<bool>& stop);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moh::train
