#include "moh/train/train_config.h"

#include <cmath>

#include "moh/base/error.h"
#include "moh/ops/autocast.h"

namespace moh::train {

void check_train_config(const TrainConfig& config) {
  const auto at_least = [](const char* name, auto value, auto least) {
    MOH_CHECK(value >= least, "[train] ", name, " must be at least ", least, ", got ", value);
  };
  at_least("steps", config.steps, 1);
  at_least("batch", config.batch, 1);
  at_least("accumulate", config.accumulate, 1);
  at_least("warmup", config.warmup, 0);
  at_least("epoch_steps", config.epoch_steps, 0);
  at_least("keep", config.keep, 1);
  at_least("log_every", config.log_every, 1);
  at_least("validate_every", config.validate_every, 0);
  at_least("checkpoint_every", config.checkpoint_every, 0);
  MOH_CHECK(config.ema >= 0 && config.ema < 1, "[train] ema must be at least 0 and below 1, got ", config.ema);
  MOH_CHECK(config.batch % config.accumulate == 0, "[train] batch ", config.batch, " must be a multiple of accumulate ",
            config.accumulate);
  MOH_CHECK(config.lr > 0 && std::isfinite(config.lr), "[train] lr must be positive, got ", config.lr);
  MOH_CHECK(config.final_lr >= 0 && config.weight_decay >= 0 && config.clip >= 0,
            "[train] final_lr, weight_decay and clip must be at least 0");
  ops::autocast_type(config.dtype);
  MOH_CHECK(config.reduce_dtype == "fp32" || config.reduce_dtype == "bf16",
            "[train] reduce_dtype must be fp32 or bf16, ", "got `", config.reduce_dtype, "`");
}

}  // namespace moh::train
