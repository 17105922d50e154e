// The choice of the next token from a model's logits: options of one request, and the state that goes with it.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace moh::text {

struct SamplingOptions {
  double temperature = 0.0;  // 0: greedy
  std::int64_t top_k = 0;    // 0: all
  double top_p = 1.0;
  std::uint64_t seed = 0;
  double repetition_penalty = 1.0;  // logits of ids in prompt and text: divided by it above zero, else multiplied
  double frequency_penalty = 0.0;   // for each time that an id is in the text, subtracted
  double presence_penalty = 0.0;    // subtracted once from those in the text
  std::vector<std::pair<std::int64_t, double>> logit_bias = {};  // id, what is added; minus infinity forbids it
};

// Penalties and bias in the order above; then temperature, the top_k most probable ids, and of them the smallest set
// whose probability reaches top_p. Ties go to the lower id. Only those ids are sorted that may be chosen. Errors:
// options out of range, logits that are NaN or plus infinity, no id that is allowed.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options, std::span<const std::int64_t> prompt = {});

  // One id, which then belongs to the text.
  std::int64_t operator()(std::span<const float> logits);
  std::int64_t operator()(std::span<const double> logits);

 private:
  std::int64_t choose();
  void adjust();
  std::size_t sort_front(std::size_t sorted, std::size_t count);

  SamplingOptions options_;
  std::mt19937_64 random_;
  struct Seen {
    std::int64_t in_text = 0;
  };
  std::unordered_map<std::int64_t, Seen> seen_;
  // Kept from token to token for their memory.
  std::vector<double> logits_, weights_;
  std::vector<std::uint32_t> order_;
};

}  // namespace moh::text
