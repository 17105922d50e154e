// The text that conversion learns from: some windows of one or several streams.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "moh/data/token_data.h"
#include "moh/models/llama_config.h"

namespace moh::convert {

struct Calibration {
  std::vector<const data::TokenStream*> texts;  // read in turn, window by window
  std::int64_t sequence = 0, windows = 16;      // sequence 0: the model's context, at most 512
  bool spread = false;                          // windows lie evenly over every text instead of at its beginning
};

// Tokens of a window, windows that there are, and the ids [1, length + 1] of one. Errors: texts that are too short, a
// sequence longer than the model's context.
std::int64_t window_length(const models::LlamaConfig& config, const Calibration& calibration);
std::int64_t window_count(const Calibration& calibration, std::int64_t length);
at::Tensor window_ids(const Calibration& calibration, std::int64_t length, std::int64_t window);

}  // namespace moh::convert
