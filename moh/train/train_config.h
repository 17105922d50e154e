// The settings of a training that do not depend on what is trained.
#pragma once

#include <cstdint>
#include <string>

#include "moh/base/fields.h"

namespace moh::train {

struct TrainConfig {
  std::int64_t steps = 1000, batch = 16, accumulate = 1, warmup = 50;
  double lr = 3e-4, final_lr = 0.1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1.0;
  double warmup_lr = 1e-7;
  std::int64_t epoch_steps = 0;
  double ema = 0;
  std::string dtype = "fp32", reduce_dtype = "fp32";
  bool recompute = false;
  std::int64_t seed = 0, validate_every = 100, checkpoint_every = 500, keep = 2, log_every = 10;

  template <class V>
  void fields(V& visit) {
    visit("steps", steps, "optimizer steps");
    visit("batch", batch, "examples per step: sequences or pictures");
    visit("accumulate", accumulate, "parts that a batch is computed in, to save memory");
    visit("lr", lr, "peak learning rate");
    visit("final_lr", final_lr, "learning rate of the last step as a share of the peak (cosine)");
    visit("warmup", warmup, "steps of linear warm-up");
    visit("warmup_lr", warmup_lr, "learning rate that warm-up begins at");
    visit("epoch_steps", epoch_steps,
          "steps of an epoch through which the learning rate stays; 0: it moves every step");
    visit("beta1", beta1, "AdamW");
    visit("beta2", beta2, "AdamW");
    visit("eps", eps, "AdamW");
    visit("weight_decay", weight_decay, "AdamW, on matrices only");
    visit("clip", clip, "largest L2 norm of the gradient; 0: no clipping");
    visit("ema", ema, "decay of the weights' exponential moving average, e.g. 0.9999; 0: none");
    visit("dtype", dtype, "fp32, or bf16/fp16 matrix products with fp32 weights; fp16 scales the loss");
    visit("recompute", recompute,
          "keep the layers' inputs alone for the backward pass: less memory, a third more work");
    visit("reduce_dtype", reduce_dtype,
          "type in which several processes send gradients: fp32, or bf16 at half the bytes");
    visit("seed", seed, "of initialisation and data order");
    visit("validate_every", validate_every, "steps between validations; 0: only at the end");
    visit("checkpoint_every", checkpoint_every, "steps between checkpoints; 0: only at the end");
    visit("keep", keep, "checkpoints kept");
    visit("log_every", log_every, "steps between lines of log.jsonl");
  }
};

void check_train_config(const TrainConfig& config);

}  // namespace moh::train
