// How rotary frequencies are stretched for longer contexts: plain data, known to configurations without torch.
#pragma once

#include <cstdint>
#include <string>

namespace moh::layers {

struct RopeScaling {  // config.json `rope_scaling`; type "default", "linear" or "llama3"
  std::string type = "default";
  double factor = 1.0, low_freq_factor = 1.0, high_freq_factor = 4.0;
  std::int64_t original_max_position_embeddings = 8192;
};

}  // namespace moh::layers
