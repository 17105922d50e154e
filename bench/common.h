// What the subjects share: random heads for each token, the work that follows from them, and the row of a case.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "bench/bench.h"
#include "bench/timing.h"
#include "bench/work.h"

namespace moh::bench {

at::ScalarType type_of(const std::string& dtype);

// [B, T, H] fp32: a gate in [0.5, 1.5) for each head that a token uses, 0 for the others. Each token uses
// round(activated * H) heads at random, or, selecting kv-group, all heads of round(activated * Hkv) KV heads.
at::Tensor random_gates(const Case& c, std::int64_t tokens, const at::Generator& generator);

// Share of gates that are not zero.
double active_share(const at::Tensor& gates);

// Counts rows, pairs and KV heads that `gates` [B, T, H] ask for, with `keys` keys and, where causal, the last query
// seeing all of them.
AttentionWork attention_work(const at::Tensor& gates, std::int64_t keys, std::int64_t kv_heads, std::int64_t head_dim,
                             bool causal, double bytes_per_element);

// Name of the kernel backend that serves attention of this case, "composite" if none does.
std::string attention_backend(const Case& c, at::Device device);

struct Measured {
  Timing timing;
  double activated = 1, max_abs_error = 0;
  std::string rival_form;              // which form of the rival was fastest
  std::vector<Work> work, rival_work;  // steps that each side needs
};

// The keys that every subject has; docs/bench.md says what they mean.
Row make_row(const char* subject, const Case& c, const Options& options, const Measured& measured);

}  // namespace moh::bench
