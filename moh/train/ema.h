// Exponential moving average of parameters: after each optimizer step, average = decay * average + (1 - decay) * value.
#pragma once

#include "moh/io/checkpoint.h"

namespace moh::train {

class Ema {
 public:
  // Starts from the parameters' present values.
  Ema(const io::NamedTensors& parameters, double decay);
  void update();
  const io::NamedTensors& values() const { return average_; }
  // Errors: a tensor that is missing or of another shape.
  void load(const io::NamedTensors& values);

 private:
  io::NamedTensors parameters_, average_;
  double decay_;
};

}  // namespace moh::train
